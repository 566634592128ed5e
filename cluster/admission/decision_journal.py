"""The facts of governance: each decision before its effect, each effect after it, in the governor's own journal.

A fact that allows something carries a decision id; a later one with the same id says what became of it. A decision
without one was cut short by the end of its governor: `unfinished` finds those, and recovery looks at the rows to say
what became of them. Fails closed: what can't be written did not happen, and its effect does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from cluster.admission.admission import Decision
from cluster.clock import Clock
from cluster.errors import IntegrityError
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.telemetry.tracing import span

GOVERNOR = "governance"


class FactSink(Protocol):
    """Where facts go: a JournalWriter."""

    def append(self, fact: Fact) -> int:
        """Write one fact; raises StorageError when it could not be written."""
        ...

    def sync(self) -> int:
        """Force what was written to disk; raises StorageError."""
        ...

    def close(self) -> None:
        """End the journal."""
        ...


class DecisionJournal:
    """Writes the facts of one governor; safe to use from many threads, which share syncs."""

    def __init__(self, sink: FactSink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock

    def write(
        self,
        action: AuditAction,
        outcome: AuditOutcome,
        *,
        tenant: str,
        agent: str,
        actor: str = GOVERNOR,
        decision: Decision | None = None,
        decision_id: str = "",
        request_id: str = "",
        reason: str = "",
        detail: dict[str, Any] | None = None,
        sync: bool = False,
    ) -> None:
        """Write one fact, and with `sync` return only when it is on disk; raises StorageError."""
        event = AuditEvent.new(
            self._clock,
            action,
            outcome,
            actor=actor,
            tenant_id=tenant,
            object_id=agent,
            request_id=request_id or None,
            decision_id=(decision.decision_id if decision else decision_id) or None,
            reason=reason or None,
            detail=(decision.to_detail() if decision else {}) | (detail or {}),
        )
        with span("journal", attributes={"sovereign.action": action.value}):
            self._sink.append(Fact(Stream.AUDIT, event.to_body()))
            if sync:
                self._sink.sync()

    def sync(self) -> None:
        """Force every fact so far to disk; raises StorageError."""
        self._sink.sync()

    def close(self) -> None:
        """End the journal."""
        self._sink.close()


def unfinished(directory: Path, writer_id: str, epochs: Iterable[int]) -> tuple[list[AuditEvent], list[str]]:
    """Return the decisions of these journals that no later fact of them speaks of, and what could not be read.

    `epochs` in ascending order: what one governor left open, a later one may have closed in its own journal.
    """
    pending: dict[str, AuditEvent] = {}
    broken: list[str] = []
    for epoch in epochs:
        reader = JournalReader(directory, JournalId(writer_id, epoch))
        try:
            while facts := reader.read():
                for _, fact in facts:
                    if fact.stream is Stream.AUDIT:
                        _take(AuditEvent.from_body(fact.body), pending)
        except IntegrityError as e:
            broken.append(e.detail)
    return list(pending.values()), broken


def _take(event: AuditEvent, pending: dict[str, AuditEvent]) -> None:
    if event.decision_id is None or event.outcome is AuditOutcome.DENIED:
        return
    if event.outcome is AuditOutcome.ALLOWED:
        pending[event.decision_id] = event
    else:
        pending.pop(event.decision_id, None)
