"""Changes of tenants, projects and keys: each a fact on disk before its effect, and made by the last governor alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.registry import DeposedError
from cluster.coordination.coordination import Check, CoordinationConflictError
from cluster.errors import SovereignError, UnavailableError
from cluster.identity.principal import Principal
from cluster.journal.audit_event import AuditAction, AuditOutcome

T = TypeVar("T")


class TenancyJournal:
    """Does what is asked between two facts. `fence` belongs into the transaction of each effect."""

    def __init__(self, journal: DecisionJournal, fence: Check) -> None:
        self._journal = journal
        self.fence = fence

    def change(
        self,
        action: AuditAction,
        who: Principal,
        *,
        tenant: str,
        object_id: str,
        request_id: str,
        effect: Callable[[], T],
        detail: dict[str, Any] | None = None,
    ) -> T:
        """Write that `who` is allowed to, on disk; bring `effect` about; write that it is done, or void. Returns its value.

        Raises StorageError when the first fact can't be written (nothing happened then), DeposedError, what `effect` raises.
        """

        def write(outcome: AuditOutcome, reason: str = "", *, sync: bool = False) -> None:
            self._journal.write(
                action,
                outcome,
                tenant=tenant,
                agent=object_id,
                actor=who.subject,
                request_id=request_id,
                reason=reason,
                detail=detail,
                sync=sync,
            )

        write(AuditOutcome.ALLOWED, sync=True)
        try:
            value = effect()
        except SovereignError as e:
            # Whether a store that is away did it is not known.
            if not isinstance(e, UnavailableError):
                write(AuditOutcome.VOID, e.code)
            if isinstance(e, CoordinationConflictError) and e.path == self.fence.path:
                raise DeposedError("A later governor has taken over; this one changed nothing.", retry_after_s=1.0) from None
            raise
        write(AuditOutcome.DONE)
        return value
