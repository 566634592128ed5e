"""Changes of registered agents: admitted as the difference to what they hold, by a decision of their own.

Policy, quota, budget and row change in one transaction. Processes of the earlier spec are to be ended by the caller;
until they have, the agent holds what either spec takes, and none of the new one starts beside them.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol

from cluster.admission.decisions import Decisions
from cluster.admission.registry import DeposedError, Registry, Row
from cluster.agents.lifecycle import AgentState
from cluster.agents.record import AgentRecord
from cluster.agents.registration import RegistrationRequest
from cluster.errors import (
    ConflictError,
    NotFoundError,
    PreconditionFailedError,
    SovereignError,
    StorageError,
    UnavailableError,
)
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditOutcome

ANY = "*"


class TenantLock(Protocol):
    """Where threads of one tenant queue."""

    def __call__(self, tenant: TenantId) -> AbstractContextManager[object]:
        """Return the tenant's lock."""
        ...


class Changes:
    """The part of the registrar that changes specs."""

    def __init__(self, registry: Registry, decisions: Decisions, lock: TenantLock) -> None:
        self._registry = registry
        self._decisions = decisions
        self._lock = lock

    def change(
        self, principal: Principal, request: RegistrationRequest, *, if_match: str = "", request_id: str = ""
    ) -> tuple[AgentRecord, bool]:
        """Make a registered agent what `request` says; returns its record, and whether anything changed.

        `if_match` is the digest of the spec that is to be changed; empty or "*" for any. Raises NotFoundError,
        PreconditionFailedError when the agent has another spec by now, AdmissionDeniedError, QuotaExceededError.
        """
        tenant, agent = principal.tenant, request.agent_id
        under, standing = self._decisions.digest, self._registry.standing(tenant)
        spec, row = self._decisions.spec(tenant, request), self._find(tenant, agent)
        if Scope.AGENTS_REGISTER in principal.scopes and row.record.spec.digest == spec.digest:
            return row.record, False  # also when it is asked again because the answer was lost
        _require_match(row.record, if_match)
        decision = self._decisions.admit(principal, spec, request_id, under=under, changes=row.record.decision_id)
        bounds = self._decisions.bounds(tenant)
        terms = {
            "tools": decision.tools,
            "decision_id": decision.decision_id,
            "policy_revision": decision.revision,
            "policy_digest": decision.digest,
        }

        def attempt() -> tuple[AgentRecord, bool]:
            row = self._find(tenant, agent)
            if row.record.spec.digest == spec.digest:
                return row.record, False
            _require_match(row.record, if_match)
            after = row.record.changed(spec, **terms)
            decided = [self._registry.decided_by(decision.digest), self._registry.decided_of(tenant, standing)]
            self._registry.transact([*self._registry.ops_to_change(row, after, bounds), *decided])
            return after, True

        new = row.record.changed(spec, **terms)
        try:
            with self._lock(tenant):
                record, changed = self._registry.retry(attempt)
        except SovereignError as e:
            record, changed = self._look_again(new, e, request_id)
        outcome, reason = (AuditOutcome.DONE, "") if changed else (AuditOutcome.VOID, "changed already")
        self._decisions.outcome(new, outcome, reason, request_id)
        return record, changed

    def _find(self, tenant: TenantId, agent: AgentId) -> Row:
        row = self._registry.find(tenant, agent)
        if row is None or row.record.state is AgentState.REVOKED:
            raise NotFoundError(f"There is no agent {agent}.", hint="List the agents to see which there are.")
        if row.record.gang:
            raise ConflictError(
                f"Agent {agent} belongs to the gang {row.record.gang}, whose places are as large as it is.",
                hint="Remove the gang, and register it anew.",
            )
        return row

    def _look_again(self, new: AgentRecord, error: SovereignError, request_id: str) -> tuple[AgentRecord, bool]:
        """Return the record if it was changed in spite of `error`; otherwise say that its decision is void, and raise."""
        if isinstance(error, UnavailableError) and not isinstance(error, DeposedError):
            # The store did not say whether it wrote. If it can't be asked either, recovery will.
            row = self._registry.find(new.tenant, new.spec.agent_id)
            if row is not None and row.record.decision_id == new.decision_id:
                return row.record, True
        with contextlib.suppress(StorageError):
            self._decisions.outcome(new, AuditOutcome.VOID, error.code, request_id)
        raise error


def _require_match(record: AgentRecord, if_match: str) -> None:
    if if_match not in ("", ANY, record.spec.digest):
        raise PreconditionFailedError(
            f"Agent {record.spec.agent_id} has another specification than the one that was to be changed.",
            hint="Read it again, and send its spec_digest as If-Match.",
        )
