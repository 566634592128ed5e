"""Waking and ending agents: each step decided by the lifecycle table, written in one fenced transaction, and journalled.

The decision to wake is a fact before its effect; it is forced to disk with the journal's next sync and not waited for,
because a wake is on the way of a call.
"""

from __future__ import annotations

from cluster.admission.admission import Decision, activation_request, decide
from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.policy_in_force import PolicySource
from cluster.admission.registry import PolicyChangedError, Registry, Row
from cluster.agents.life import mint_process
from cluster.agents.lifecycle import AgentEvent, AgentState
from cluster.agents.record import AgentRecord
from cluster.coordination.coordination import Op
from cluster.coordination.journals import journal_entry, journal_place
from cluster.errors import AdmissionDeniedError, InvalidRequestError, NotFoundError, StaleGenerationError
from cluster.identity.ids import AgentId, TenantId
from cluster.journal.audit_event import AuditAction, AuditOutcome

_REASONS = {"start_failed": AgentEvent.START_FAILED, "drained": AgentEvent.DRAINED, "lost": AgentEvent.LOST}


class _ChangedError(Exception):
    """The agent has another spec than the one that was decided on."""


class Activator:
    """The part of the registrar that agents' processes come and go by."""

    def __init__(self, registry: Registry, policy: PolicySource, journal: DecisionJournal, *, node: str) -> None:
        self._registry = registry
        self._policy = policy
        self._journal = journal
        self._node = node
        # Which policy let each generation start that this governor began and that is not live yet.
        self._let_start: dict[tuple[TenantId, AgentId, int], str] = {}

    def ask(self, record: AgentRecord) -> Decision:
        """Return what today's policy says to waking the agent of `record`."""
        return decide(self._policy.now.engine, activation_request(record))

    def begin_start(self, tenant: TenantId, agent_id: AgentId) -> tuple[AgentRecord, int]:
        """Decide, journal, and make a passive agent `starting`, or one more replica of it, under its next generation."""
        standing = self._registry.standing(tenant)
        record = self._find(tenant, agent_id).record
        # Before the policy is asked, so that a race for the start is told from a refusal.
        record.woken("")
        decision = self.ask(record)
        self._write(
            record,
            AgentEvent.WAKE,
            AuditOutcome.ALLOWED if decision.allow else AuditOutcome.DENIED,
            decision,
            record.generation + 1,
        )
        if not decision.allow:
            raise AdmissionDeniedError(
                f"Agent {agent_id} may not start any more: the policy has changed since it was registered.",
                hint=f"The decision is recorded as {decision.decision_id}.",
                errors=decision.field_errors(),
            )

        process = mint_process(tenant)

        def attempt() -> AgentRecord:
            row = self._find(tenant, agent_id)
            if row.record.created_us != record.created_us:
                raise NotFoundError(f"Agent {agent_id} was removed and registered anew while it was to start.")
            if row.record.decision_id != record.decision_id:
                raise _ChangedError
            after = row.record.woken(process)
            # On which node is Ray's to choose: it is written when the process says where it is.
            journal = journal_entry(_writer(tenant, agent_id), after.generation, "")
            decided = self._registry.decided_by(decision.digest), self._registry.decided_of(tenant, standing)
            return self._registry.change(row, after, journal, *decided)

        try:
            after = self._registry.retry(attempt)
        except PolicyChangedError as e:
            self._write(record, AgentEvent.WAKE, AuditOutcome.VOID, decision, record.generation + 1, reason=e.code)
            raise
        except _ChangedError:
            # Its spec is another one now, which this decision says nothing about.
            self._write(record, AgentEvent.WAKE, AuditOutcome.VOID, decision, record.generation + 1, reason="changed meanwhile")
            return self.begin_start(tenant, agent_id)
        self._let_start[tenant, agent_id, after.generation] = decision.digest
        self._write(after, AgentEvent.WAKE, AuditOutcome.DONE, decision, after.generation)
        return after, after.generation

    def may_stay(self, tenant: TenantId, agent_id: AgentId, generation: int) -> bool:
        """Return whether a generation that has just come up may go on: it is decided again if the policy changed meanwhile."""
        decided = self._let_start.pop((tenant, agent_id, generation), "")
        policy = self._policy.now
        if policy.bundle.digest == decided:
            return True
        record = self._find(tenant, agent_id, generation).record
        decision = decide(policy.engine, activation_request(record, AgentState.PASSIVE))
        if not decision.allow:
            why = "the policy changed while it started"
            self._write(record, AgentEvent.WAKE, AuditOutcome.DENIED, decision, generation, reason=why)
        return decision.allow

    def mark_live(self, tenant: TenantId, agent_id: AgentId, generation: int, address: str, node: str = "") -> AgentRecord:
        """Make a starting generation live at `address` of `node`, which is this governor's own when it is empty."""
        place = journal_place(_writer(tenant, agent_id), generation, node or self._node)
        return self._step(tenant, agent_id, generation, AgentEvent.STARTED, address, place)

    def mark_draining(self, tenant: TenantId, agent_id: AgentId, generation: int) -> AgentRecord:
        """Make a live generation draining."""
        return self._step(tenant, agent_id, generation, AgentEvent.DRAIN)

    def mark_passive(self, tenant: TenantId, agent_id: AgentId, generation: int, reason: str) -> AgentRecord:
        """Record that a generation has no process any more; what was revoked goes for good."""
        event = _REASONS.get(reason)
        if event is None:
            raise InvalidRequestError(f"{reason[:40]!r} is no way for a process to end; it is one of {', '.join(_REASONS)}.")

        def attempt() -> AgentRecord:
            row = self._find(tenant, agent_id, generation)
            if row.record.life(generation) is None:
                return row.record
            after, ops = self._end(row, generation, event)
            self._registry.transact(ops)
            return after

        self._let_start.pop((tenant, agent_id, generation), None)
        after = self._registry.retry(attempt)
        self._write(after, event, AuditOutcome.DONE, None, generation)
        return after

    def rebind(self, tenant: TenantId, agent_id: AgentId, generation: int, other: AgentId, other_generation: int) -> None:
        """Let the process of another agent's generation, which is closed, hold a starting generation of this one.

        One transaction, so that a process never stands for two agents, and its name always for the one it is to be.
        """

        def attempt() -> tuple[AgentRecord, AgentRecord]:
            mine, theirs = self._find(tenant, agent_id, generation), self._find(tenant, other, other_generation)
            starting, closed = mine.record.life(generation), theirs.record.life(other_generation)
            if mine.record.state is AgentState.REVOKED:
                raise NotFoundError(f"Agent {agent_id} was removed while it was to start.")
            if starting is None or starting.state is not AgentState.STARTING or closed is None:
                raise StaleGenerationError(f"A process of agent {other} can't become agent {agent_id}: one of the two is over.")
            after = mine.record.moved(generation, closed.process)
            ended, ops = self._end(theirs, other_generation, AgentEvent.DRAINED)
            self._registry.transact([*ops, *self._registry.ops_to_change(mine, after)])
            return ended, after

        ended, after = self._registry.retry(attempt)
        self._write(ended, AgentEvent.DRAINED, AuditOutcome.DONE, None, other_generation, reason=f"rebound to {agent_id}")
        self._write(after, AgentEvent.WAKE, AuditOutcome.DONE, None, generation, reason=f"in the process of {other}")

    def _end(self, row: Row, generation: int, event: AgentEvent) -> tuple[AgentRecord, list[Op]]:
        """Return the record without the process of a generation, and what makes it so; the last of a revoked one ends its row."""
        record = row.record
        if record.state is not AgentState.REVOKED:
            after = _ended(record, generation, event)
        elif len(record.lives) > 1:
            after = record.without(generation, event)
        else:
            return record.leaving(AgentEvent.REMOVE), self._registry.ops_to_delete(row)
        return after, self._registry.ops_to_change(row, after)

    def _step(
        self, tenant: TenantId, agent_id: AgentId, generation: int, event: AgentEvent, address: str = "", *more: Op
    ) -> AgentRecord:
        def attempt() -> AgentRecord:
            row = self._find(tenant, agent_id, generation)
            return self._registry.change(row, row.record.after(event, generation, address=address), *more)

        after = self._registry.retry(attempt)
        self._write(after, event, AuditOutcome.DONE, None, generation)
        return after

    def _find(self, tenant: TenantId, agent_id: AgentId, generation: int | None = None) -> Row:
        row = self._registry.find(tenant, agent_id)
        # A revoked agent is there only for its process to end: without a generation nobody asks for that.
        if row is None or (generation is None and row.record.state is AgentState.REVOKED):
            raise NotFoundError(f"There is no agent {agent_id}.")
        if generation not in (None, row.record.generation) and row.record.life(generation) is None:
            raise StaleGenerationError(
                f"Generation {generation} of agent {agent_id} is over; it has come to {row.record.generation}.",
                hint="Leave its record alone.",
            )
        return row

    def _write(
        self,
        record: AgentRecord,
        event: AgentEvent,
        outcome: AuditOutcome,
        decision: Decision | None,
        generation: int,
        *,
        reason: str = "",
    ) -> None:
        self._journal.write(
            AuditAction.LIFECYCLE_TRANSITION,
            outcome,
            tenant=record.tenant,
            agent=record.spec.agent_id,
            decision=decision,
            reason=reason,
            detail={"event": event.value, "state": record.state.value, "generation": generation},
        )


def _writer(tenant: TenantId, agent_id: AgentId) -> str:
    return f"agent.{tenant}.{agent_id}"


def _ended(record: AgentRecord, generation: int, event: AgentEvent) -> AgentRecord:
    """Return the record without a process that ended; what ended otherwise than its state foresees was lost."""
    life = record.life(generation)
    if event is AgentEvent.DRAINED and life is not None and life.state is AgentState.LIVE:
        record = record.after(AgentEvent.DRAIN, generation)
        life = record.life(generation)
    foreseen = {AgentState.STARTING: AgentEvent.START_FAILED, AgentState.DRAINING: AgentEvent.DRAINED}
    return record.after(event if life is not None and foreseen.get(life.state) is event else AgentEvent.LOST, generation)
