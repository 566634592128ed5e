"""May this caller call that agent? Asked when a caller looks an agent up, and held to by the ticket that it then gets."""

from __future__ import annotations

from cluster.admission.admission import decide, invocation_request
from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.decisions import denied
from cluster.admission.policy_in_force import PolicySource
from cluster.admission.questions import delegation_request
from cluster.admission.registry import Registry, not_found
from cluster.agents.lifecycle import AgentState
from cluster.agents.record import AgentRecord
from cluster.clock import Clock
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.principal import Principal
from cluster.journal.audit_event import AuditAction, AuditOutcome


class Invocations:
    """Decides on callers: people and programs by their scopes, agents that hand work on by their own rights besides."""

    def __init__(self, registry: Registry, policy: PolicySource, journal: DecisionJournal, clock: Clock) -> None:
        self._registry = registry
        self._policy = policy
        self._journal = journal
        self._clock = clock

    def check(self, who: Principal, agent_id: AgentId, *, ttl_s: float) -> None:
        """Return when today's policy lets `who` call the agent of their tenant for `ttl_s` seconds.

        Raises AdmissionDeniedError that names every failed check, and for an agent that hands work on NotFoundError when one
        of the two is not there.
        """
        decision = decide(self._policy.now.engine, invocation_request(who, "invoke", who.tenant))
        if not decision.allow:
            raise denied(f"Agent {agent_id} can't be called", decision, decision.failed)
        if who.agent:
            self._check_delegation(who, agent_id, ttl_s)

    def _check_delegation(self, who: Principal, agent_id: AgentId, ttl_s: float) -> None:
        parent, child = self._record(who.tenant, AgentId(who.agent)), self._record(who.tenant, agent_id)
        expires_us = self._clock.now_us() + int(ttl_s * 1e6)
        decision = decide(self._policy.now.engine, delegation_request(who, parent, child, expires_us=expires_us))
        self._journal.write(
            AuditAction.DELEGATION_DECIDE,
            AuditOutcome.DONE if decision.allow else AuditOutcome.DENIED,
            tenant=who.tenant,
            agent=agent_id,
            actor=who.subject,
            decision=decision,
            detail={"depth": who.depth},
        )
        if not decision.allow:
            raise denied(f"Agent {who.agent} may not hand work to agent {agent_id}", decision, decision.failed)

    def _record(self, tenant: TenantId, agent_id: AgentId) -> AgentRecord:
        row = self._registry.find(tenant, agent_id)
        if row is None or row.record.state is AgentState.REVOKED:
            raise not_found(agent_id)
        return row.record
