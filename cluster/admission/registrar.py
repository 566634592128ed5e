"""The one gate: who registers an agent, wakes it or takes it away does so through here (docs/life-of-a-registration.md).

Decide → journal the decision, on disk → one coordination transaction (row, quota, key, fenced by the epoch) → journal the
outcome, on disk → answer. It may end at any point: a decision without a row is void, and `recover` says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from cluster.admission.activator import Activator
from cluster.admission.admission import Decision, decide, invocation_request
from cluster.admission.bundle_opener import BundleOpener
from cluster.admission.bundle_shelf import BundleShelf
from cluster.admission.bundles import Bundles
from cluster.admission.changes import Changes
from cluster.admission.cordons import Cordons
from cluster.admission.decision_journal import DecisionJournal, FactSink
from cluster.admission.decisions import Decisions, denied
from cluster.admission.gangs import Gangs
from cluster.admission.invocations import Invocations
from cluster.admission.policy_in_force import PolicyInForce
from cluster.admission.questions import granted_hosts
from cluster.admission.reconciliation import SeenActor
from cluster.admission.recovery import recover
from cluster.admission.registry import DeposedError, LiveRow, Registry, digest_key, not_found
from cluster.admission.standing import PolicyForTenants
from cluster.admission.tenancy import Tenancy
from cluster.admission.tenants import Tenants
from cluster.agents.budget import UNITS, Budget
from cluster.agents.gang import Gang
from cluster.agents.gang_request import GangRequest
from cluster.agents.lifecycle import AgentEvent, AgentState
from cluster.agents.placement import Node
from cluster.agents.record import AgentRecord
from cluster.agents.registration import RegistrationRequest
from cluster.agents.spec import AgentSpec
from cluster.clock import Clock
from cluster.coordination.coordination import Check, Coordination
from cluster.coordination.epochs import fence
from cluster.errors import (
    ConflictError,
    NotFoundError,
    SovereignError,
    StorageError,
    UnavailableError,
)
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditOutcome
from cluster.limits.price_card import Price, price_of
from cluster.limits.terms import Bound, Terms, tenant_bounds
from cluster.telemetry.redaction import redact

WRITER_ID: Final = "governance"
# Who ends strays, in the audit log.
RECONCILER: Final = "reconciler"
# How much of a name that a stray's creator chose is written down.
_MAX_NAME: Final = 200
# The epoch of the governor's journal is its fencing token too: whoever registers a later journal is the governor.
EPOCH_NAME: Final = f"journal.{WRITER_ID}"
# Spelled here, because the registrar's own `list` hides the builtin inside its class.
LiveRows = list[LiveRow]
Kept = list[tuple[TenantId, AgentId]]
LiveGangs = list[Gang]
Members = list[AgentRecord]
Reservations = list[tuple[str, str, Budget]]
_Records = list[AgentRecord]


@dataclass(frozen=True, slots=True)
class Registration:
    """An agent that is registered; `created` is false when it was registered before by the same request."""

    record: AgentRecord
    created: bool

    @property
    def answer(self) -> dict[str, str]:
        """What the caller is told."""
        return {"status": "registered", "agent_id": str(self.record.spec.agent_id), "security_clearance": "validated"}


class Registrar:
    """Governance's ledger; safe to use from many threads. A later epoch's registrar ends this one's power to change."""

    def __init__(
        self,
        coordination: Coordination,
        policy: PolicyInForce,
        journal: FactSink,
        *,
        opener: BundleOpener,
        shelf: BundleShelf,
        clock: Clock,
        epoch: int,
        node: str,
        journal_dir: Path,
    ) -> None:
        """Take over as the governor of `epoch`; its journal must be registered and open (`wiring.build_registrar`)."""
        self._coordination = coordination
        self._tenants = Tenants(coordination, lambda: policy.now.bundle.catalog)
        # Every decision goes through it, so that the policy knows also the tenants that were made at run time.
        self._policy = of_tenants = PolicyForTenants(policy, self._tenants)
        self._clock = clock
        self._epoch = epoch
        self._journal_dir = journal_dir
        self._journal = DecisionJournal(journal, clock)
        self._registry = Registry(coordination, fence(EPOCH_NAME, epoch))
        self._decisions = Decisions(of_tenants, self._tenants, self._journal)
        self._changes = Changes(self._registry, self._decisions, self._lock)
        self._gangs = Gangs(coordination, self._registry, self._decisions, self._lock, clock)
        self._activator = Activator(self._registry, of_tenants, self._journal, node=node)
        # Who may call whom.
        self.invocations = Invocations(self._registry, of_tenants, self._journal, clock)
        # How another policy comes into force.
        self.bundles = Bundles(
            coordination, fence(EPOCH_NAME, epoch), self._journal, policy, opener=opener, shelf=shelf, clock=clock
        )
        # Which nodes take no agents.
        self.cordons = Cordons(coordination, fence(EPOCH_NAME, epoch), self._journal)
        # Tenants, projects and keys, for those who administer them.
        self.tenancy = Tenancy(
            coordination,
            self._tenants,
            lambda: frozenset(policy.now.bundle.catalog.plans),
            fence=fence(EPOCH_NAME, epoch),
            journal=self._journal,
            clock=clock,
        )
        # Threads of one tenant queue here and not in retries on the tenant's quota; by hash, so that their number is bounded.
        self._tenant_locks = tuple(threading.Lock() for _ in range(64))

    def register(
        self, principal: Principal, request: RegistrationRequest, *, request_id: str = "", idempotency_key: str = ""
    ) -> Registration:
        """Register an agent of the principal's tenant; the same request again gets the same answer and changes nothing.

        Raises AdmissionDeniedError with every failed check, QuotaExceededError, ConflictError when the id or the key stands
        for something else, StorageError when the decision can't be written (nothing happened then).
        """
        register = partial(self._register, principal, request, request_id, idempotency_key)
        return self.bundles.deciding_again(register)

    def _register(
        self, principal: Principal, request: RegistrationRequest, request_id: str, idempotency_key: str
    ) -> Registration:
        tenant, key = principal.tenant, digest_key(idempotency_key)
        under, standing = self._decisions.digest, self._registry.standing(tenant)
        spec = self._decisions.spec(tenant, request)
        fingerprint = request.fingerprint()
        if Scope.AGENTS_REGISTER in principal.scopes and (known := self._known(tenant, spec, key, fingerprint)):
            return known
        decision = self._decisions.admit(principal, spec, request_id, under=under)
        record = AgentRecord(
            tenant=tenant,
            project=principal.project,
            spec=spec,
            tools=decision.tools,
            decision_id=decision.decision_id,
            policy_revision=decision.revision,
            policy_digest=decision.digest,
            registered_by=principal.subject,
            created_us=self._clock.now_us(),
            idempotency=key,
        )
        try:
            registration = self._admit(record, fingerprint, standing)
        except SovereignError as e:
            registration = self._look_again(record, e, request_id)
        # Not created: the same request of another thread was faster, and this decision is not what the row stands on.
        outcome, reason = (AuditOutcome.DONE, "") if registration.created else (AuditOutcome.VOID, "registered already")
        self._decisions.outcome(record, outcome, reason, request_id)
        return registration

    def change(
        self, principal: Principal, request: RegistrationRequest, *, if_match: str = "", request_id: str = ""
    ) -> tuple[AgentRecord, bool]:
        """Make a registered agent what `request` says; returns its record, and whether anything changed.

        End the processes of its earlier spec then (`Changes.change`).
        """
        change = partial(self._changes.change, principal, request, if_match=if_match, request_id=request_id)
        return self.bundles.deciding_again(change)

    def know_nodes(self, nodes: Callable[[], Sequence[Node]]) -> None:
        """Ask `nodes`, from any thread, at each admission which nodes there are."""
        self._decisions.nodes = nodes

    def get(self, tenant: TenantId, agent_id: AgentId) -> AgentRecord:
        """Return one agent; raises NotFoundError, also for another tenant's and for one that is being removed."""
        row = self._registry.find(tenant, agent_id)
        if row is None or row.record.state is AgentState.REVOKED:
            raise not_found(agent_id)
        return row.record

    def list(self, tenant: TenantId, after: str, limit: int) -> _Records:
        """Return up to `limit` agents of `tenant` in order of their ids, from the first one greater than `after` on."""
        found: _Records = []
        for record in self._registry.page(tenant, after, limit):
            if len(found) >= limit:
                break
            if record.state is not AgentState.REVOKED:
                found.append(record)
        return found

    def remove(self, tenant: TenantId, agent_id: AgentId, principal: Principal, *, request_id: str = "") -> AgentRecord:
        """Revoke an agent: it never wakes again. Returns the record as it was left.

        Without a process its row is gone and its quota is back (state `absent`). Otherwise it is `revoked`: end the
        process, then call `mark_passive`, which removes the row. Raises NotFoundError, AdmissionDeniedError.
        """
        row = self._registry.find(tenant, agent_id)
        if row is None or row.record.state is AgentState.REVOKED:
            raise not_found(agent_id)
        if row.record.gang:
            raise ConflictError(
                f"Agent {agent_id} belongs to the gang {row.record.gang}.", hint="Remove the gang; its members go together."
            )
        return self._remove([row.record], principal, request_id, lambda: [self._revoke_or_delete(tenant, agent_id)])[0]

    def register_gang(self, principal: Principal, request: GangRequest, *, request_id: str = "") -> tuple[_Records, bool]:
        """Register several agents, all or none; returns them, and whether it was just now (`Gangs.register`)."""
        register = partial(self._gangs.register, principal, request, request_id=request_id)
        return self.bundles.deciding_again(register)

    def gang(self, tenant: TenantId, gang_id: str) -> Gang:
        """Return a gang; raises NotFoundError."""
        return self._gangs.find(tenant, gang_id)

    def gang_members(self, tenant: TenantId, gang_id: str) -> Members:
        """Return the members of a gang that are not being removed; raises NotFoundError."""
        return self._gangs.members(tenant, self._gangs.find(tenant, gang_id))

    def gangs(self) -> LiveGangs:
        """Return every gang of every tenant."""
        return [*self._gangs.all()]

    def remove_gang(self, tenant: TenantId, gang_id: str, principal: Principal, *, request_id: str = "") -> Gang:
        """Revoke all members of a gang, as `remove` does one: end their processes, and let go of its place."""
        gang = self._gangs.find(tenant, gang_id)
        self._remove(self._gangs.members(tenant, gang), principal, request_id, lambda: self._gangs.remove(tenant, gang))
        return gang

    def _remove(self, records: _Records, principal: Principal, request_id: str, act: Callable[[], _Records]) -> _Records:
        """Decide on the removal of each of `records`, journal it, `act`, and journal what became of it."""
        whose = {
            r.spec.agent_id: decide(self._policy.now.engine, invocation_request(principal, "remove", r.tenant)) for r in records
        }
        allowed = all(decision.allow for decision in whose.values())

        def write(removed: _Records, outcome: AuditOutcome, reason: str = "") -> None:
            for r in removed:
                agent = r.spec.agent_id
                self._removal(r, outcome, actor=principal.subject, decision=whose[agent], request_id=request_id, reason=reason)

        write(records, AuditOutcome.ALLOWED if allowed else AuditOutcome.DENIED)
        if not allowed:
            agent, decision = next((a, d) for a, d in whose.items() if not d.allow)
            if any(f.name == "same_tenant" for f in decision.failed):
                raise not_found(agent)
            raise denied(f"Agent {agent} can't be removed", decision, decision.failed)
        try:
            with self._lock(records[0].tenant):
                removed = self._registry.retry(act)
        except SovereignError as e:
            # Whether an unavailable store did it is left to recovery, which looks.
            if not isinstance(e, UnavailableError):
                write(records, AuditOutcome.VOID, e.code)
            raise
        write(removed, AuditOutcome.DONE)
        return removed

    def check_activation(self, tenant: TenantId, agent_id: AgentId) -> Decision:
        """Return what today's policy says to waking this agent, without waking it; raises NotFoundError."""
        return self._activator.ask(self.get(tenant, agent_id))

    def begin_start(self, tenant: TenantId, agent_id: AgentId) -> tuple[AgentRecord, int]:
        """Decide again, and begin one more generation of an agent; returns the record and the generation to start.

        The name of its process (`record.life(generation)`) is minted, and its journal registered, in the same transaction.
        Raises NotFoundError, AdmissionDeniedError, IllegalTransitionError when it has all its replicas.
        """
        return self.bundles.deciding_again(lambda: self._activator.begin_start(tenant, agent_id))

    def may_stay(self, tenant: TenantId, agent_id: AgentId, generation: int) -> bool:
        """Return whether a generation that has come up may go on: by a new decision if the policy changed since `begin_start`."""
        return self._activator.may_stay(tenant, agent_id, generation)

    def mark_live(self, tenant: TenantId, agent_id: AgentId, generation: int, address: str, node: str = "") -> AgentRecord:
        """Record that a starting generation answers at `address`, and on which node it writes its journal.

        An empty `node` is the governor's own. Raises StaleGenerationError, IllegalTransitionError.
        """
        return self._activator.mark_live(tenant, agent_id, generation, address, node)

    def mark_draining(self, tenant: TenantId, agent_id: AgentId, generation: int) -> AgentRecord:
        """Record that a live generation takes no new calls; raises StaleGenerationError, IllegalTransitionError."""
        return self._activator.mark_draining(tenant, agent_id, generation)

    def mark_passive(self, tenant: TenantId, agent_id: AgentId, generation: int, reason: str) -> AgentRecord:
        """Record that a generation has no process any more (`reason`: start_failed, drained, lost).

        A revoked agent's row goes with its last one, and its quota comes back. Doing it twice changes nothing. Raises
        NotFoundError, StaleGenerationError when a later generation has begun.
        """
        return self._activator.mark_passive(tenant, agent_id, generation, reason)

    def rebind(self, tenant: TenantId, agent_id: AgentId, generation: int, other: AgentId, other_generation: int) -> None:
        """Record that a process which is no longer `other`'s is to hold this starting generation, in one transaction.

        Call it when the other's journal is closed and before the process becomes this agent. Raises NotFoundError when this
        one is revoked, StaleGenerationError when either generation is over.
        """
        self._activator.rebind(tenant, agent_id, generation, other, other_generation)

    def recover(self) -> None:
        """Say what became of every decision that an earlier governor left open; call it before anything else."""
        recover(
            self._coordination,
            self._registry,
            self._journal,
            directory=self._journal_dir,
            writer_id=WRITER_ID,
            epoch=self._epoch,
        )

    def live_rows(self) -> LiveRows:
        """Return every generation of which a process may exist; the cost depends on their number alone."""
        return [*self._registry.live()]

    def kept(self) -> Kept:
        """Return every agent that has processes also while nobody calls it; the cost depends on their number alone."""
        return [*self._registry.kept()]

    def quota(self, tenant: TenantId) -> dict[str, Any]:
        """Return what the tenant's agents hold of its quota, counted in CPU milli, bytes and agents."""
        held, plan = self._registry.accounts.quota_use(tenant).held, self._tenants.plan_of(tenant)
        bound = plan.quota if plan else None
        return {
            "cpu_milli": {"used": held.resources.cpu_milli, "limit": bound.cpu if bound else 0},
            "memory_bytes": {"used": held.resources.memory_bytes, "limit": bound.memory if bound else 0},
            "agents": {"used": held.agents, "limit": bound.agents if bound else 0},
        }

    def budget(self, tenant: TenantId) -> dict[str, Any]:
        """Return what is reserved and spent of the tenant's budget, by unit; a limit of None bounds nothing."""
        use, plan = self._registry.accounts.budget_use(tenant), self._tenants.plan_of(tenant)
        return {
            unit: {
                "reserved": use.reserved.of(unit),
                "settled": use.settled.of(unit),
                "limit": plan.budget.of(unit) if plan else 0,
            }
            for unit in UNITS
        }

    def reservations(self, tenant: TenantId) -> Reservations:
        """Return decision id, agent and amount of every reservation of the tenant."""
        return [*self._registry.accounts.reservations(tenant)]

    def may_have_raw_actors(self, tenant: str) -> bool:
        """Return whether the tenant's plan lets its jobs create Ray actors of their own, which no agent's limits hold."""
        return self._tenants.may_have_raw_actors(tenant)

    def record_stray(self, stray: SeenActor, tenant: str) -> None:
        """Write down that an actor without a record is ended, before it is; raises StorageError, and then it must not be.

        `tenant` is what its job says of itself, if anything.
        """
        self._journal.write(
            AuditAction.RECONCILER_KILL,
            AuditOutcome.ALLOWED,
            tenant=tenant,
            agent=stray.actor_id,
            actor=RECONCILER,
            reason="no record stands behind it",
            detail={
                "job_id": stray.job_id,
                "class_name": redact(stray.class_name)[:_MAX_NAME],
                "name": redact(stray.name)[:_MAX_NAME],
                "namespace": redact(stray.namespace)[:_MAX_NAME],
                "pid": stray.pid,
            },
        )

    def egress_hosts(self, record: AgentRecord) -> tuple[str, ...]:
        """Return the hosts that the agent's tools may fetch from, as the policy in force says; none when it does not answer."""
        return granted_hosts(self._policy.now.engine, record)

    def price_of(self, record: AgentRecord) -> Price:
        """Return what the agent's model costs, by the policy in force; raises ConfigurationError without a price."""
        return price_of(self._policy.now.bundle.catalog.price_card(), record.spec.model)

    def terms(self, tenant: TenantId, agent_id: AgentId) -> Terms:
        """Return what bounds the calls of an agent now; raises NotFoundError."""
        record, plan = self.get(tenant, agent_id), self._tenants.plan_of(tenant)
        if plan is None:
            raise NotFoundError(f"Tenant {tenant} has no plan.")
        return Terms.of(plan, record, self.price_of(record))

    def tenant_bounds(self, tenant: TenantId) -> tuple[Bound, ...]:
        """Return what bounds all calls of a tenant together now; nothing for one that is gone."""
        plan = self._tenants.plan_of(tenant)
        return tenant_bounds(plan, str(tenant)) if plan is not None else ()

    def policy_status(self) -> dict[str, Any]:
        """Return revision, digest and number of the policy that decides here."""
        policy = self._policy.now
        return {"revision": policy.bundle.revision, "digest": policy.bundle.digest, "number": policy.number}

    def close(self) -> None:
        """End the journal and let go of the coordination store."""
        self._journal.close()
        self._coordination.close()

    def _admit(self, record: AgentRecord, fingerprint: str, standing: Check) -> Registration:
        with self._lock(record.tenant):
            return self._registry.retry(lambda: self._try_to_admit(record, fingerprint, standing))

    def _try_to_admit(self, record: AgentRecord, fingerprint: str, standing: Check) -> Registration:
        tenant, spec = record.tenant, record.spec
        if known := self._known(tenant, spec, record.idempotency, fingerprint):
            return known
        # A name that was used before starts above its last generation, so that no key or actor name ever comes back.
        new = replace(record, generation=self._registry.retired_generation(tenant, spec.agent_id))
        decided_of = self._registry.decided_of(tenant, standing)
        self._registry.create([new], self._decisions.bounds(tenant), fingerprint, decided_of)
        return Registration(new, created=True)

    def _known(self, tenant: TenantId, spec: AgentSpec, key: str, fingerprint: str) -> Registration | None:
        """Return the registration that this one repeats; raises ConflictError when the key or the id stands for another."""
        if (kept := self._registry.idempotent(tenant, key)) is not None:
            if kept[0] != fingerprint:
                raise ConflictError(
                    "This Idempotency-Key was used for another registration.", hint="Use a new key for each new request."
                )
            row = self._registry.find(tenant, kept[1])
            if row is not None and row.record.state is not AgentState.REVOKED:
                return Registration(row.record, created=False)
        row = self._registry.find(tenant, spec.agent_id)
        if row is None:
            return None
        if row.record.state is AgentState.REVOKED:
            raise ConflictError(f"Agent {spec.agent_id} is just being removed.", hint="Try again in a moment.", retry_after_s=1.0)
        if row.record.spec.digest != spec.digest:
            raise ConflictError(
                f"Agent {spec.agent_id} is registered with another specification.",
                hint="Change it by PUT, remove it first, or choose another agent_id.",
            )
        return Registration(row.record, created=False)

    def _look_again(self, record: AgentRecord, error: SovereignError, request_id: str) -> Registration:
        """Return the registration if it is there in spite of `error`; otherwise say that its decision is void, and raise."""
        if isinstance(error, UnavailableError) and not isinstance(error, DeposedError):
            # The store did not say whether it wrote. If it can't be asked either, recovery will.
            row = self._registry.find(record.tenant, record.spec.agent_id)
            if row is not None and row.record.decision_id == record.decision_id:
                return Registration(row.record, created=True)
        with contextlib.suppress(StorageError):
            self._decisions.outcome(record, AuditOutcome.VOID, error.code, request_id)
        raise error

    def _revoke_or_delete(self, tenant: TenantId, agent_id: AgentId) -> AgentRecord:
        row = self._registry.find(tenant, agent_id)
        if row is None or row.record.state is AgentState.REVOKED:
            raise not_found(agent_id)
        return self._registry.remove([row])[0]

    def _removal(
        self, record: AgentRecord, outcome: AuditOutcome, *, actor: str, decision: Decision, request_id: str, reason: str = ""
    ) -> None:
        self._journal.write(
            AuditAction.LIFECYCLE_TRANSITION,
            outcome,
            tenant=record.tenant,
            agent=record.spec.agent_id,
            actor=actor,
            decision=decision,
            request_id=request_id,
            reason=reason,
            detail={"event": AgentEvent.REMOVE.value, "state": record.state.value, "generation": record.generation},
            sync=True,
        )

    def _lock(self, tenant: TenantId) -> threading.Lock:
        return self._tenant_locks[hash(tenant) % len(self._tenant_locks)]
