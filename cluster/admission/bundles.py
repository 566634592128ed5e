"""How a new policy comes into force while others decide, and how decisions that it overtook are made again.

Opened → its number greater than the last → written down, on disk → its artefact on the shelf → one transaction that puts it
in force → it decides here. What is refused changes nothing. From that transaction on no decision of an earlier policy
takes effect, because each effect's own transaction holds only under the policy that decided it (`Registry.decided_by`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, TypeVar

from cluster.admission.admission import require_sound
from cluster.admission.bundle_format import BundleRefusedError
from cluster.admission.bundle_opener import BundleOpener
from cluster.admission.bundle_shelf import (
    ACCEPTED,
    AcceptedBundle,
    BundleShelf,
    accepted_bundle,
    accepted_bundles,
    ops_to_accept,
)
from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.policy_engine import PolicyEngineError, PolicyTimeoutError
from cluster.admission.policy_in_force import PolicyInForce
from cluster.admission.questions import ENTRYPOINTS
from cluster.admission.registry import DeposedError, PolicyChangedError
from cluster.clock import Clock
from cluster.coordination.coordination import Check, Coordination, CoordinationConflictError
from cluster.errors import SovereignError, UnavailableError
from cluster.journal.audit_event import AuditAction, AuditOutcome

log = logging.getLogger(__name__)
T = TypeVar("T")
# Bundles that may come into force while one decision is made.
_DECISIONS: Final = 5


class Bundles:
    """Takes bundles for one governor; safe to use from many threads."""

    def __init__(
        self,
        coordination: Coordination,
        fence: Check,
        journal: DecisionJournal,
        policy: PolicyInForce,
        *,
        opener: BundleOpener,
        shelf: BundleShelf,
        clock: Clock,
    ) -> None:
        self._coordination = coordination
        self._fence = fence
        self._journal = journal
        self._policy = policy
        self._opener = opener
        self._shelf = shelf
        self._clock = clock
        # One at a time, and what is in force here changes with what the store says.
        self._lock = threading.Lock()

    def push(self, artefact: bytes, actor: str) -> AcceptedBundle:
        """Put a bundle in force and return it.

        Raises BundleRefusedError, DeposedError, StorageError or UnavailableError; the policy before goes on then. A refusal
        is one fact of the audit log.
        """
        with self._lock:
            before = accepted_bundle(self._coordination)
            try:
                opened = self._opener.open(artefact)
                _require_later(opened.tried.number, before)
            except SovereignError as e:
                what = {"artefact": hashlib.sha256(artefact).hexdigest()}
                self._write(AuditOutcome.DENIED, actor, reason=e.detail, detail=what)
                raise
            tried = opened.tried
            accepted = AcceptedBundle(
                number=tried.number,
                revision=tried.bundle.revision,
                digest=tried.bundle.digest,
                artefact=hashlib.sha256(artefact).hexdigest(),
                key_id=opened.key_id,
                actor=actor,
                accepted_us=self._clock.now_us(),
            )
            detail = {
                "number": accepted.number,
                "revision": accepted.revision,
                "digest": accepted.digest,
                "artefact": accepted.artefact,
                "key_id": accepted.key_id,
                "before": before.number if before else 0,
            }
            self._write(AuditOutcome.ALLOWED, actor, detail=detail)
            try:
                self._shelf.keep(accepted.number, artefact)
                policy = self._opener.start(tried)
                self._accept(accepted)
            except SovereignError as e:
                # An engine elsewhere may have the new one already: until it has the old one again, by now or by `heal`, it
                # allows nothing.
                with contextlib.suppress(SovereignError):
                    self._policy.replace(self._opener.start(self._policy.now))
                self._write(AuditOutcome.VOID, actor, reason=e.code, detail=detail)
                raise
            self._policy.replace(policy)
            self._write(AuditOutcome.DONE, actor, detail=detail)
            return accepted

    def list(self) -> dict[str, Any]:
        """Return every accepted bundle, the latest first, with the number of the one in force."""
        found = [asdict(bundle) for bundle in accepted_bundles(self._coordination)]
        current = accepted_bundle(self._coordination)
        return {"bundles": found[::-1], "in_force": current.number if current else 0}

    def deciding_again(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, and repeat it from its decision on when another policy came into force meanwhile.

        Raises UnavailableError when that happens too often.
        """
        for _ in range(_DECISIONS):
            try:
                return attempt()
            except PolicyChangedError:
                self.catch_up()
        raise UnavailableError("The policy changes too often for a decision.", hint="Try again.", retry_after_s=1.0)

    def catch_up(self) -> None:
        """Let the policy that the store says is in force decide here; raises BundleRefusedError when it can't be had."""
        with self._lock:
            accepted = accepted_bundle(self._coordination)
            if accepted is not None and accepted.digest != self._policy.now.bundle.digest:
                tried = self._opener.open(self._shelf.read(accepted)).tried
                self._policy.replace(self._opener.start(tried))

    def heal(self) -> None:
        """Start the engine of the policy that decides here again, if it is elsewhere and can't decide by it; ask now and then.

        It began anew without the policy, say, or has parts of one that was not accepted. Raises ConfigurationError while it
        can't be had: it allows nothing then.
        """
        if not self._opener.decides_elsewhere:
            return
        with self._lock:
            try:
                require_sound(self._policy.now.engine, ENTRYPOINTS.values())
            except PolicyTimeoutError:
                return  # it is slow, which another start would not change
            except PolicyEngineError as e:
                log.warning("the policy engine is given its policy again: %s", e.detail)
                self._policy.replace(self._opener.start(self._policy.now))

    def _accept(self, accepted: AcceptedBundle) -> None:
        try:
            self._coordination.transact([self._fence, *ops_to_accept(self._coordination, accepted)])
        except CoordinationConflictError as e:
            if e.path == self._fence.path:
                raise DeposedError("A later governor has taken over; this one changed nothing.", retry_after_s=1.0) from None
            raise
        except UnavailableError:
            # The store did not say whether it wrote.
            if accepted_bundle(self._coordination) != accepted:
                raise

    def _write(self, outcome: AuditOutcome, actor: str, *, detail: dict[str, Any], reason: str = "") -> None:
        self._journal.write(
            AuditAction.POLICY_LOAD, outcome, tenant="", agent=ACCEPTED, actor=actor, reason=reason, detail=detail, sync=True
        )


def _require_later(number: int, before: AcceptedBundle | None) -> None:
    if before is not None and number <= before.number:
        raise BundleRefusedError(
            f"The policy bundle is refused: its number {number} is not greater than {before.number}, which is in force.",
            hint="To go back to an earlier policy: `sovereign policy rollback`.",
        )
