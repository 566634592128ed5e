"""One decision on one spec: the policy's checks, obligations and what else must hold, as a fact before it has any effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.admission.admission import Decision, FailedCheck, admission_request, decide
from cluster.admission.catalog import Plan
from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.policy_in_force import PolicySource
from cluster.admission.prerequisites import failed_prerequisites
from cluster.admission.registry import PolicyChangedError
from cluster.admission.tenants import Tenants
from cluster.agents.holding import holding_of
from cluster.agents.placement import Node
from cluster.agents.record import AgentRecord
from cluster.agents.registration import RegistrationRequest
from cluster.agents.spec import AgentSpec, Resources, SpecDefaults
from cluster.errors import AdmissionDeniedError, FieldError, NotFoundError
from cluster.identity.principal import Principal
from cluster.journal.audit_event import AuditAction, AuditOutcome

# What completes a registration of a tenant that has no plan: it is refused, and nothing of it is allowed anywhere.
_NO_PLAN = SpecDefaults(agent_type="", model="", resources=Resources(0, 0), data_access_level="")


class Decisions:
    """Decides on specs, and writes down each decision and what became of it; safe to use from many threads."""

    def __init__(self, policy: PolicySource, tenants: Tenants, journal: DecisionJournal) -> None:
        self._policy = policy
        self._tenants = tenants
        self._journal = journal
        # The nodes that are known, of which each decision takes account; while there are none, none is missed.
        self.nodes: Callable[[], Sequence[Node]] = tuple

    @property
    def digest(self) -> str:
        """The digest of the policy in force now: read it before `spec`, and name it to `decide`."""
        return self._policy.now.bundle.digest

    def spec(self, tenant: str, request: RegistrationRequest) -> AgentSpec:
        """Return what is asked for, completed by the defaults of the tenant's plan."""
        plan = self._tenants.plan_of(tenant)
        return request.to_spec(plan.defaults.to_spec_defaults() if plan else _NO_PLAN)

    def bounds(self, tenant: str) -> Plan:
        """Return the plan that bounds the tenant; raises NotFoundError without one."""
        plan = self._tenants.plan_of(tenant)
        if plan is None:
            raise NotFoundError(f"There is no tenant {tenant}.")
        return plan

    def decide(
        self,
        principal: Principal,
        spec: AgentSpec,
        request_id: str,
        *,
        under: str,
        more: Sequence[FailedCheck] = (),
        changes: str = "",
        sync: bool = True,
    ) -> tuple[Decision, tuple[FailedCheck, ...]]:
        """Return the decision, which is on disk if it allows and `sync`, with what keeps it from being allowed.

        `under` is the digest of the policy whose defaults completed the spec: raises PolicyChangedError when another one is
        in force by now, before anything is decided. `more` is what failed elsewhere; `changes` is the decision that an agent
        stood on which is to be changed.
        """
        policy = self._policy.now
        if policy.bundle.digest != under:
            raise PolicyChangedError("The policy changed before this was decided.", retry_after_s=1.0)
        decision = decide(policy.engine, admission_request(principal, spec))
        # Nobody in this cluster can meet an obligation yet, so one that is not met denies.
        unmet = [FailedCheck(f"obligation_{o}", f"It needs {o}, which was not given.") for o in decision.obligations]
        nodes = self.nodes()
        unmet += [*failed_prerequisites(spec, self._tenants.plan_of(principal.tenant), nodes), *more]
        allowed = decision.allow and not unmet
        detail = {
            "spec_digest": spec.digest,
            "reserves": holding_of(spec).to_json() | spec.budget.to_json(),
            "nodes": sorted(node.name for node in nodes),
        }
        detail |= {"unmet": {f.name: f.message for f in unmet}} if unmet else {}
        detail |= {"changes": changes} if changes else {}
        self._journal.write(
            AuditAction.ADMISSION_DECIDE,
            AuditOutcome.ALLOWED if allowed else AuditOutcome.DENIED,
            tenant=principal.tenant,
            agent=spec.agent_id,
            actor=principal.subject,
            decision=decision,
            request_id=request_id,
            detail=detail,
            sync=allowed and sync,
        )
        return decision, () if allowed else (*decision.failed, *unmet)

    def admit(self, principal: Principal, spec: AgentSpec, request_id: str, *, under: str, changes: str = "") -> Decision:
        """Return the decision that allows `spec`, on disk; raises AdmissionDeniedError, journalled too."""
        decision, failed = self.decide(principal, spec, request_id, under=under, changes=changes)
        if failed:
            raise denied(f"Agent {spec.agent_id} was not admitted", decision, failed)
        return decision

    def outcome(self, record: AgentRecord, outcome: AuditOutcome, reason: str, request_id: str, *, sync: bool = True) -> None:
        """Write what became of the decision that `record` stands on, or was to stand on."""
        self._journal.write(
            AuditAction.ADMISSION_OUTCOME,
            outcome,
            tenant=record.tenant,
            agent=record.spec.agent_id,
            decision_id=record.decision_id,
            request_id=request_id,
            reason=reason,
            sync=sync,
        )

    def sync(self) -> None:
        """Force to disk what was written without."""
        self._journal.sync()


def denied(what: str, decision: Decision, failed: Sequence[FailedCheck]) -> AdmissionDeniedError:
    """Return the refusal that names every failed check."""
    errors = [FieldError(f.name, f.message) for f in failed]
    return AdmissionDeniedError(
        f"{what}: {len(errors)} check(s) of policy {decision.revision} did not pass.",
        hint=f"The decision is recorded as {decision.decision_id}.",
        errors=errors,
    )
