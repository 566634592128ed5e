"""Which nodes take no agents, whoever governs: `/cordons/<node>` exists while a node is drained."""

from __future__ import annotations

from typing import Final

from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.registry import DeposedError
from cluster.coordination.coordination import Check, Coordination, CoordinationConflictError, Create, Delete, Op
from cluster.journal.audit_event import AuditAction, AuditOutcome

_FOLDER: Final = "/cordons"


class Cordons:
    """Reads and changes them; each change is decided on the record, on disk, before it is made. For many threads."""

    def __init__(self, coordination: Coordination, fence: Check, journal: DecisionJournal) -> None:
        self._coordination = coordination
        self._fence = fence
        self._journal = journal

    def all(self) -> frozenset[str]:
        """Return the names of the nodes that take no agents."""
        found: list[str] = []
        while names := self._coordination.children(_FOLDER, after=found[-1] if found else ""):
            found += names
        return frozenset(n for n in found if self._coordination.get(f"{_FOLDER}/{n}") is not None)

    def put(self, node: str, actor: str) -> None:
        """Keep agents from `node` from now on; doing it twice changes nothing. Raises DeposedError, StorageError."""
        self._change(AuditAction.NODE_DRAIN, Create(f"{_FOLDER}/{node}", actor.encode()), node, actor)

    def lift(self, node: str, actor: str) -> None:
        """Let agents be placed on `node` again; doing it twice changes nothing. Raises DeposedError, StorageError."""
        self._change(AuditAction.NODE_RESUME, Delete(f"{_FOLDER}/{node}"), node, actor)

    def _change(self, action: AuditAction, op: Op, node: str, actor: str) -> None:
        self._journal.write(action, AuditOutcome.ALLOWED, tenant="", agent=node, actor=actor, sync=True)
        try:
            self._coordination.transact([self._fence, op])
        except CoordinationConflictError as e:
            if e.path == self._fence.path:
                raise DeposedError("A later governor has taken over; this one changed nothing.", retry_after_s=1.0) from None
        self._journal.write(action, AuditOutcome.DONE, tenant="", agent=node, actor=actor)
