"""What became of decisions that an earlier governor left open: the rows say, because a row and its quota are one transaction.

Nothing has to be undone: a registration either has its row, its quota and its key, or none of them.
"""

from __future__ import annotations

from pathlib import Path

from cluster.admission.decision_journal import DecisionJournal, unfinished
from cluster.admission.registry import Registry
from cluster.agents.lifecycle import AgentEvent, AgentState
from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Op, Set
from cluster.coordination.epochs import fence
from cluster.coordination.journals import registered_epochs
from cluster.errors import UnavailableError
from cluster.identity.ids import AgentId, TenantId
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome


def recover(
    coordination: Coordination,
    registry: Registry,
    journal: DecisionJournal,
    *,
    directory: Path,
    writer_id: str,
    epoch: int,
) -> None:
    """Write the outcome of each decision that the journals of `writer_id` before `epoch` left open.

    Journals are read from the last recovery on, so the cost does not grow with the age of the cluster. Doing it again, also
    after it was cut short, changes nothing but repeats of the same outcome. Raises UnavailableError when a later governor
    has begun.
    """
    path = f"/recovered/{writer_id}"
    mark = coordination.get(path)
    since = int(mark.value) if mark else 0
    epochs = [e for e in registered_epochs(coordination, writer_id) if since < e < epoch]
    pending, broken = unfinished(directory, writer_id, epochs)
    for event in pending:
        done = _is_there(registry, event)
        journal.write(
            AuditAction(event.action) if event.action != AuditAction.ADMISSION_DECIDE else AuditAction.ADMISSION_OUTCOME,
            AuditOutcome.DONE if done else AuditOutcome.VOID,
            tenant=event.tenant_id or "",
            agent=event.object_id or "",
            decision_id=event.decision_id or "",
            request_id=event.request_id or "",
            reason="found at recovery",
            detail={"event": event.detail.get("event", AgentEvent.REGISTER.value)},
        )
    for why in broken:
        journal.write(AuditAction.JOURNAL_BROKEN, AuditOutcome.FAILED, tenant="", agent=writer_id, reason=why)
    # On disk before the mark says that these journals need not be read again.
    journal.sync()
    value = str(epoch - 1).encode()
    move: Op = Create(path, value) if mark is None else Set(path, value, mark.version)
    try:
        coordination.transact([fence(f"journal.{writer_id}", epoch), move])
    except CoordinationConflictError:
        raise UnavailableError("A later governor has begun; this one must end.") from None


def _is_there(registry: Registry, event: AuditEvent) -> bool:
    """Return whether the effect that `event` allowed has happened."""
    row = registry.find(TenantId(event.tenant_id or ""), AgentId(event.object_id or ""))
    if event.action == AuditAction.ADMISSION_DECIDE:
        return row is not None and row.record.decision_id == event.decision_id
    generation = int(event.detail.get("generation", 0))
    if event.detail.get("event") == AgentEvent.REMOVE:
        return row is None or row.record.state is AgentState.REVOKED
    return row is not None and row.record.generation >= generation
