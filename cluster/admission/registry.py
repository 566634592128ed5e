"""The rows that registration and activation change, and the operations that change them, each fenced by the governor's epoch.

/tenants/<tenant>/agents/<agent>        the record
/tenants/<tenant>/idempotency/<digest>  which registration a key stands for, as long as that is registered
/tenants/<tenant>/retired/<agent>       the last generation of a removed agent, so that its name starts above it again
/live/<tenant>.<agent>                  exists while a process of the agent may exist
/kept/<tenant>.<agent>                  exists for an agent that has processes also while nobody calls it

What lets an agent be, or start, holds only while the policy that decided it is in force (`bundle_shelf.py`), and while its
tenant has the plan and the state that were decided on (`tenants.py`).
What they hold of quota and budget changes in the same transactions (`accounts.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson

from cluster.admission.accounts import Accounts
from cluster.admission.bundle_shelf import ACCEPTED, AcceptedBundle
from cluster.admission.catalog import Plan
from cluster.admission.tenants import tenant_path
from cluster.agents.lifecycle import AgentEvent, AgentState
from cluster.agents.record import AgentRecord
from cluster.coordination.coordination import ABSENT, Check, Coordination, CoordinationConflictError, Create, Delete, Op, Set
from cluster.errors import ConflictError, IntegrityError, NotFoundError, UnavailableError
from cluster.identity.ids import AgentId, TenantId
from cluster.telemetry.tracing import span

T = TypeVar("T")
_ATTEMPTS = 100
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it was read, with the version that a change of it must still find."""

    record: AgentRecord
    version: int


@dataclass(frozen=True, slots=True)
class LiveRow:
    """A generation of an agent of which a process may exist."""

    tenant: str
    agent_id: str
    generation: int
    state: str
    address: str
    # The name of the process that holds it, or is to hold it.
    process: str
    # Whether it runs an earlier spec than the one that is admitted now.
    outdated: bool = False


class DeposedError(UnavailableError):
    """A later governor has begun: this one may change nothing any more."""

    code = "deposed"


class PolicyChangedError(UnavailableError):
    """Another policy than the one that decided is in force: nothing was done, and it must be decided again."""

    code = "policy_changed"
    retryable = True


class TenantChangedError(PolicyChangedError):
    """The tenant has another plan or state than when it was decided on: nothing was done, and it must be decided again."""

    code = "tenant_changed"


class Registry:
    """Reads and changes the rows. Every change holds only while this governor's epoch does."""

    def __init__(self, coordination: Coordination, fence: Check) -> None:
        self._coordination = coordination
        self._fence = fence
        self.accounts = Accounts(coordination)

    def find(self, tenant: TenantId, agent: AgentId) -> Row | None:
        """Return the row of an agent, or None."""
        node = self._coordination.get(_agent_path(tenant, agent))
        return Row(AgentRecord.from_bytes(node.value), node.version) if node else None

    def page(self, tenant: TenantId, after: str, limit: int) -> Iterator[AgentRecord]:
        """Yield at least `limit` records of `tenant` in order of agent id after `after`, or all that there are."""
        while names := self._coordination.children(f"/tenants/{tenant}/agents", after=after, limit=max(1, limit)):
            for name in names:
                if (row := self.find(tenant, AgentId(name))) is not None:
                    yield row.record
            after = names[-1]

    def live(self) -> Iterator[LiveRow]:
        """Yield every generation of which a process may exist; a revoked agent's are `revoked`."""
        after = ""
        while names := self._coordination.children("/live", after=after, limit=_PAGE):
            for name in names:
                tenant, _, agent = name.partition(".")
                if (row := self.find(TenantId(tenant), AgentId(agent))) is None:
                    if self._coordination.get(f"/live/{name}") is None:
                        continue  # it was removed between the two readings
                    raise IntegrityError(f"/live/{name} stands without a record.")
                r = row.record
                revoked = r.state is AgentState.REVOKED
                for life in r.lives:
                    state = r.state if revoked else life.state
                    outdated = life.generation <= r.outdated
                    yield LiveRow(tenant, agent, life.generation, state.value, life.address, life.process, outdated)
            after = names[-1]

    def kept(self) -> Iterator[tuple[TenantId, AgentId]]:
        """Yield every agent that has processes also while nobody calls it."""
        after = ""
        while names := self._coordination.children("/kept", after=after, limit=_PAGE):
            for name in names:
                tenant, _, agent = name.partition(".")
                yield TenantId(tenant), AgentId(agent)
            after = names[-1]

    def idempotent(self, tenant: TenantId, key_digest: str) -> tuple[str, AgentId] | None:
        """Return fingerprint and agent of the registration that was made under a key, or None."""
        node = self._coordination.get(_key_path(tenant, key_digest)) if key_digest else None
        if node is None:
            return None
        stored = orjson.loads(node.value)
        return stored["fingerprint"], AgentId(stored["agent_id"])

    def retired_generation(self, tenant: TenantId, agent: AgentId) -> int:
        """Return the last generation of a removed agent of this name; 0 without one."""
        node = self._coordination.get(_retired_path(tenant, agent))
        return int(node.value) if node else 0

    def retry(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, and repeat it while others change what it read.

        Raises DeposedError once a later governor has begun, UnavailableError when others win too often.
        """
        for _ in range(_ATTEMPTS):
            try:
                return attempt()
            except CoordinationConflictError as e:
                if e.path == self._fence.path:
                    raise DeposedError("A later governor has taken over; this one changed nothing.", retry_after_s=1.0) from None
        raise UnavailableError("Others change the same agents too often.", hint="Try again in a moment.", retry_after_s=1.0)

    def decided_by(self, digest: str) -> Op:
        """Return what makes a transaction hold only while the policy of `digest` is in force; raises PolicyChangedError."""
        node = self._coordination.get(ACCEPTED)
        if node is None:
            return Check(ACCEPTED, ABSENT)
        if AcceptedBundle.from_bytes(node.value).digest != digest:
            raise PolicyChangedError("The policy changed after this was decided.", retry_after_s=1.0)
        return Check(ACCEPTED, node.version)

    def standing(self, tenant: TenantId) -> Check:
        """Return how the tenant stands now: plan and state of one that was made at run time. Read it before it is decided on."""
        node = self._coordination.get(tenant_path(tenant))
        return Check(tenant_path(tenant), node.version if node else ABSENT)

    def decided_of(self, tenant: TenantId, standing: Check) -> Op:
        """Return what makes a transaction hold only while the tenant stands as it did; raises TenantChangedError."""
        if self.standing(tenant) != standing:
            raise TenantChangedError("The tenant's plan or state changed after this was decided.", retry_after_s=1.0)
        return standing

    def create(self, records: Sequence[AgentRecord], bounds: Plan, fingerprint: str, *more: Op) -> None:
        """Make the rows of new agents of one tenant, with quota, budget and keys, and do `more`, in one transaction.

        Raises QuotaExceededError when they do not fit within `bounds`, all together.
        """
        decided = [self.decided_by(digest) for digest in {r.policy_digest for r in records}]
        ops: list[Op] = []
        for record in records:
            tenant, agent = record.tenant, record.spec.agent_id
            ops.append(Create(_agent_path(tenant, agent), record.to_bytes()))
            if record.idempotency:
                value = orjson.dumps({"fingerprint": fingerprint, "agent_id": agent})
                ops.append(Create(_key_path(tenant, record.idempotency), value))
            if record.generation:
                ops.append(Delete(_retired_path(tenant, agent)))
            if record.spec.min_replicas:
                ops.append(Create(_kept_path(record), b"{}"))
        self.transact([*ops, *self.accounts.ops(records[0].tenant, (), records, bounds), *decided, *more])

    def change(self, row: Row, record: AgentRecord, *more: Op) -> AgentRecord:
        """Replace the row by `record`, keep the list of live agents right, and do `more`, in one transaction."""
        self.transact([*self.ops_to_change(row, record), *more])
        return record

    def remove(self, rows: Sequence[Row], *more: Op) -> list[AgentRecord]:
        """Remove rows of one tenant, revoke those that have a process, and do `more`, in one transaction.

        Returns the records as they are left. Quota and budget of those without a process come back.
        """
        ops: list[Op] = []
        left: list[AgentRecord] = []
        for row in rows:
            if row.record.state is AgentState.PASSIVE:
                ops += _ops_to_delete(row)
                left.append(row.record.leaving(AgentEvent.REMOVE))
            else:
                left.append(row.record.leaving(AgentEvent.REVOKE))
                ops += _ops_to_change(row, left[-1])
        gone = [row.record for row in rows if row.record.state is AgentState.PASSIVE]
        self.transact([*ops, *self.accounts.ops(rows[0].record.tenant, gone, ()), *more])
        return left

    def ops_to_change(self, row: Row, record: AgentRecord, bounds: Plan | None = None) -> list[Op]:
        """Return what `change` does, for a transaction that does more; with `bounds` it raises QuotaExceededError."""
        accounts = self.accounts.ops(record.tenant, [row.record], [record], bounds)
        return [*_ops_to_change(row, record), *accounts]

    def ops_to_delete(self, row: Row) -> list[Op]:
        """Return what `delete` does, for a transaction that does more."""
        return [*_ops_to_delete(row), *self.accounts.ops(row.record.tenant, [row.record], ())]

    def transact(self, ops: list[Op]) -> None:
        """Do `ops` together, as long as this governor is the governor."""
        with span("transact"):
            self._coordination.transact([self._fence, *ops])


def digest_key(idempotency_key: str) -> str:
    """Return the SHA-256 (hex) under which an Idempotency-Key is kept; empty for none. Raises ConflictError for an odd one."""
    if not idempotency_key:
        return ""
    if len(idempotency_key) > 255 or not idempotency_key.isascii() or not idempotency_key.isprintable():
        raise ConflictError("The Idempotency-Key must be 1 to 255 printable ASCII characters.")
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def _ops_to_change(row: Row, record: AgentRecord) -> list[Op]:
    live = _live_path(record)
    ops: list[Op] = [Set(_agent_path(record.tenant, record.spec.agent_id), record.to_bytes(), row.version)]
    if record.lives and not row.record.lives:
        ops.append(Create(live, b"{}"))
    elif row.record.lives and not record.lives:
        ops.append(Delete(live))
    if bool(record.spec.min_replicas) != bool(row.record.spec.min_replicas):
        kept = _kept_path(record)
        ops.append(Create(kept, b"{}") if record.spec.min_replicas else Delete(kept))
    return ops


def _ops_to_delete(row: Row) -> list[Op]:
    record = row.record
    tenant, agent = record.tenant, record.spec.agent_id
    ops: list[Op] = [Delete(_agent_path(tenant, agent), row.version)]
    if record.lives:
        ops.append(Delete(_live_path(record)))
    if record.idempotency:
        ops.append(Delete(_key_path(tenant, record.idempotency)))
    if record.spec.min_replicas:
        ops.append(Delete(_kept_path(record)))
    if record.generation:
        ops.append(Create(_retired_path(tenant, agent), str(record.generation).encode()))
    return ops


def _agent_path(tenant: TenantId, agent: AgentId) -> str:
    return f"/tenants/{tenant}/agents/{agent}"


def _key_path(tenant: TenantId, key_digest: str) -> str:
    return f"/tenants/{tenant}/idempotency/{key_digest}"


def _retired_path(tenant: TenantId, agent: AgentId) -> str:
    return f"/tenants/{tenant}/retired/{agent}"


def _live_path(record: AgentRecord) -> str:
    return f"/live/{record.tenant}.{record.spec.agent_id}"


def _kept_path(record: AgentRecord) -> str:
    return f"/kept/{record.tenant}.{record.spec.agent_id}"


def not_found(agent_id: AgentId) -> NotFoundError:
    """Return the one error for an agent that is not there, or is not the caller's."""
    return NotFoundError(f"There is no agent {agent_id}.", hint="List the agents to see which there are.")
