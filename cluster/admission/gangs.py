"""Gangs: each member is decided on by itself, and all of them become rows in one transaction, or none does.

/gangs/<tenant>.<gang>  its members, how they are to be placed, and the name of their place
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from cluster.admission.admission import FailedCheck
from cluster.admission.changes import TenantLock
from cluster.admission.decisions import Decisions
from cluster.admission.registry import DeposedError, PolicyChangedError, Registry
from cluster.agents.gang import GROUP_PREFIX, Gang, gang_unfit
from cluster.agents.gang_request import GangRequest
from cluster.agents.record import AgentRecord
from cluster.agents.spec import AgentSpec
from cluster.clock import Clock
from cluster.coordination.coordination import Coordination, Create, Delete
from cluster.errors import (
    AdmissionDeniedError,
    ConflictError,
    FieldError,
    NotFoundError,
    SovereignError,
    StorageError,
    UnavailableError,
)
from cluster.identity.ids import AgentId, TenantId, uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditOutcome

_PAGE = 500


class Gangs:
    """The part of the registrar that registers several agents at once."""

    def __init__(
        self, coordination: Coordination, registry: Registry, decisions: Decisions, lock: TenantLock, clock: Clock
    ) -> None:
        self._coordination = coordination
        self._registry = registry
        self._decisions = decisions
        self._lock = lock
        self._clock = clock

    def find(self, tenant: TenantId, gang_id: str) -> Gang:
        """Return a gang; raises NotFoundError."""
        node = self._coordination.get(_path(tenant, gang_id))
        if node is None:
            raise NotFoundError(f"There is no gang {gang_id}.")
        return Gang.from_bytes(node.value)

    def all(self) -> Iterator[Gang]:
        """Yield every gang of every tenant."""
        after = ""
        while names := self._coordination.children("/gangs", after=after, limit=_PAGE):
            for name in names:
                if (node := self._coordination.get(f"/gangs/{name}")) is not None:
                    yield Gang.from_bytes(node.value)
            after = names[-1]

    def register(self, principal: Principal, request: GangRequest, *, request_id: str = "") -> tuple[list[AgentRecord], bool]:
        """Register all members or none; returns their records in order, and whether they were registered just now.

        The gang's id is its idempotency key. Raises AdmissionDeniedError with every failed check of every member,
        QuotaExceededError when they do not fit together, ConflictError when an id stands for something else.
        """
        tenant, fingerprint = principal.tenant, request.fingerprint()
        if Scope.AGENTS_REGISTER in principal.scopes and (known := self._known(tenant, request, fingerprint)):
            return known, False
        under, standing = self._decisions.digest, self._registry.standing(tenant)
        specs = [self._decisions.spec(tenant, member) for member in request.agents]
        gang = Gang(
            tenant,
            request.gang_id,
            tuple(s.agent_id for s in specs),
            request.strategy,
            f"{GROUP_PREFIX}{tenant}:{uuid7()}",
            fingerprint,
        )
        records = self._decide(principal, specs, gang, request_id, under)
        bounds = self._decisions.bounds(tenant)

        def attempt() -> tuple[list[AgentRecord], bool]:
            if known := self._known(tenant, request, fingerprint):
                return known, False
            if taken := [a for a in gang.agents if self._registry.find(tenant, AgentId(a)) is not None]:
                raise ConflictError(
                    f"{', '.join(taken[:3])} is registered already; nothing was registered.",
                    hint="Remove it first, or choose other ids.",
                )
            rows = [replace(r, generation=self._registry.retired_generation(tenant, r.spec.agent_id)) for r in records]
            decided_of = self._registry.decided_of(tenant, standing)
            self._registry.create(rows, bounds, "", Create(_path(tenant, gang.gang_id), gang.to_bytes()), decided_of)
            return rows, True

        try:
            with self._lock(tenant):
                rows, created = self._registry.retry(attempt)
        except SovereignError as e:
            rows, created = self._look_again(records, e, request_id)
        self._outcome(records, *((AuditOutcome.DONE, "") if created else (AuditOutcome.VOID, "registered already")), request_id)
        return rows, created

    def members(self, tenant: TenantId, gang: Gang) -> list[AgentRecord]:
        """Return the members that are not being removed; raises NotFoundError without any."""
        rows = [self._registry.find(tenant, AgentId(agent)) for agent in gang.agents]
        found = [r.record for r in rows if r is not None and r.record.gang == gang.gang_id]
        if not found:
            raise NotFoundError(f"There is no gang {gang.gang_id}.")
        return found

    def remove(self, tenant: TenantId, gang: Gang) -> list[AgentRecord]:
        """Remove all members in one transaction, and revoke those that have a process; returns them as they were left."""
        if self.find(tenant, gang.gang_id).group != gang.group:
            raise ConflictError(f"Gang {gang.gang_id} was registered anew meanwhile; nothing was removed.")
        rows = [row for agent in gang.agents if (row := self._registry.find(tenant, AgentId(agent))) is not None]
        return self._registry.remove(rows, Delete(_path(tenant, gang.gang_id)))

    def _decide(self, principal: Principal, specs: list[AgentSpec], gang: Gang, request_id: str, under: str) -> list[AgentRecord]:
        """Return the members' records, each with its decision on disk; raises AdmissionDeniedError, and then all are void."""
        nodes = self._decisions.nodes()
        records: list[AgentRecord] = []
        errors: list[FieldError] = []
        for index, spec in enumerate(specs):
            unfit = gang_unfit(specs, index, gang.strategy, nodes)
            more = [FailedCheck(name, why) for name, why in unfit.items()]
            try:
                decision, failed = self._decisions.decide(principal, spec, request_id, under=under, more=more, sync=False)
            except PolicyChangedError as e:
                self._outcome(records, AuditOutcome.VOID, e.code, request_id)
                raise
            errors += [FieldError(f"agents.{index}.{f.name}", f.message) for f in failed]
            if not failed:
                records.append(
                    AgentRecord(
                        tenant=principal.tenant,
                        project=principal.project,
                        spec=spec,
                        tools=decision.tools,
                        decision_id=decision.decision_id,
                        policy_revision=decision.revision,
                        policy_digest=decision.digest,
                        registered_by=principal.subject,
                        created_us=self._clock.now_us(),
                        gang=gang.gang_id,
                    )
                )
        if errors:
            self._outcome(records, AuditOutcome.VOID, "another member was not admitted", request_id)
            raise AdmissionDeniedError(
                f"Gang {gang.gang_id} was not admitted: {len(errors)} check(s) did not pass; nothing was registered.",
                errors=errors,
            )
        self._decisions.sync()
        return records

    def _known(self, tenant: TenantId, request: GangRequest, fingerprint: str) -> list[AgentRecord]:
        """Return the members of the gang that this request asks for again; raises ConflictError when it asks for another."""
        node = self._coordination.get(_path(tenant, request.gang_id))
        if node is None:
            return []
        gang = Gang.from_bytes(node.value)
        if gang.fingerprint != fingerprint:
            raise ConflictError(
                f"Gang {request.gang_id} is registered with other members.", hint="Remove it first, or choose another gang_id."
            )
        rows = [self._registry.find(tenant, AgentId(agent)) for agent in gang.agents]
        return [row.record for row in rows if row is not None]

    def _look_again(self, records: list[AgentRecord], error: SovereignError, request_id: str) -> tuple[list[AgentRecord], bool]:
        if isinstance(error, UnavailableError) and not isinstance(error, DeposedError):
            # The store did not say whether it wrote: one row says so for all, because they are one transaction.
            row = self._registry.find(records[0].tenant, records[0].spec.agent_id)
            if row is not None and row.record.decision_id == records[0].decision_id:
                return records, True
        with contextlib.suppress(StorageError):
            self._outcome(records, AuditOutcome.VOID, error.code, request_id)
        raise error

    def _outcome(self, records: list[AgentRecord], outcome: AuditOutcome, reason: str, request_id: str) -> None:
        for record in records:
            self._decisions.outcome(record, outcome, reason, request_id, sync=False)
        self._decisions.sync()


def _path(tenant: TenantId, gang_id: str) -> str:
    return f"/gangs/{tenant}.{gang_id}"
