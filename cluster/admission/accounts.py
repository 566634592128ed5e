"""What changes of a tenant's quota, budget and reservations when records come, change or go: as operations of one transaction.

Each is bound to the version that was read, so two at the edge of a bound can't both find room.

/tenants/<tenant>/quota                       what all records of the tenant hold together
/tenants/<tenant>/budget                      what all of them have reserved together, and what was spent
/tenants/<tenant>/reservations/<decision id>  what one agent has reserved, by the decision that its row stands on
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from cluster.admission.budget_use import BudgetUse
from cluster.admission.catalog import Plan
from cluster.admission.quota_use import QuotaUse
from cluster.agents.budget import NO_BUDGET, Budget
from cluster.agents.holding import NOTHING, Holding
from cluster.agents.record import AgentRecord
from cluster.coordination.coordination import Coordination, Create, Delete, Op, Set
from cluster.errors import FieldError, IntegrityError, QuotaExceededError
from cluster.identity.ids import TenantId

Records = Sequence[AgentRecord]


class Accounts:
    """Reads what tenants hold, and says what a transaction on their records must do to it."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination

    def quota_use(self, tenant: TenantId) -> QuotaUse:
        """Return what the tenant's agents hold."""
        return self._quota(tenant)[0]

    def budget_use(self, tenant: TenantId) -> BudgetUse:
        """Return what the tenant's agents have reserved, and what was spent."""
        return self._budget(tenant)[0]

    def reservations(self, tenant: TenantId) -> Iterator[tuple[str, str, Budget]]:
        """Yield decision id, agent and amount of each reservation of a tenant."""
        after, folder = "", f"/tenants/{tenant}/reservations"
        while names := self._coordination.children(folder, after=after):
            for name in names:
                if (node := self._coordination.get(f"{folder}/{name}")) is not None:
                    try:
                        stored = orjson.loads(node.value)
                        yield name, stored["agent_id"], Budget.from_json(stored)
                    except (KeyError, TypeError, ValueError) as e:
                        raise IntegrityError(f"The reservation {name} can't be read: {e!r}.") from None
            after = names[-1]

    def ops(self, tenant: TenantId, before: Records, after: Records, bounds: Plan | None = None) -> list[Op]:
        """Return what must be written when `after` stands in place of `before`, all of one tenant.

        With `bounds` raises QuotaExceededError that names each bound which what grows would pass.
        """
        ops: list[Op] = []
        errors: list[FieldError] = []
        held, holds = _held(before), _held(after)
        if held != holds:
            used, version = self._quota(tenant)
            use = used.changed(held, holds)
            errors += used.too_much(use, bounds.quota) if bounds else []
            ops.append(_write(_quota_path(tenant), use.to_bytes(), version))
        reserved, reserves = _reserved(before), _reserved(after)
        if reserved != reserves:
            had, version = self._budget(tenant)
            has = had.changed(reserved, reserves)
            errors += had.too_much(has, bounds.budget) if bounds else []
            ops.append(_write(_budget_path(tenant), has.to_bytes(), version))
        if errors:
            raise _does_not_fit(tenant, after, errors)
        gone = {_reservation(r): r for r in before if r.spec.budget}
        made = {_reservation(r): r for r in after if r.spec.budget}
        ops += [Delete(path) for path in gone if path not in made]
        ops += [Create(path, _reservation_value(r)) for path, r in made.items() if path not in gone]
        return ops

    def _quota(self, tenant: TenantId) -> tuple[QuotaUse, int | None]:
        node = self._coordination.get(_quota_path(tenant))
        return (QuotaUse.from_bytes(node.value), node.version) if node else (QuotaUse(), None)

    def _budget(self, tenant: TenantId) -> tuple[BudgetUse, int | None]:
        node = self._coordination.get(_budget_path(tenant))
        return (BudgetUse.from_bytes(node.value), node.version) if node else (BudgetUse(), None)


def _held(records: Records) -> Holding:
    return sum((r.holding for r in records), NOTHING)


def _reserved(records: Records) -> Budget:
    return sum((r.spec.budget for r in records), NO_BUDGET)


def _write(path: str, value: bytes, version: int | None) -> Op:
    return Create(path, value) if version is None else Set(path, value, version)


def _does_not_fit(tenant: TenantId, records: Records, errors: list[FieldError]) -> QuotaExceededError:
    who = ", ".join(r.spec.agent_id for r in records[:3]) + (" …" if len(records) > 3 else "")
    bound = "quota" if any(e.field.startswith("quota.") for e in errors) else "budget"
    return QuotaExceededError(
        f"{'Agent' if len(records) == 1 else 'Agents'} {who} {'does' if len(records) == 1 else 'do'} not fit into the {bound} "
        f"of tenant {tenant}; nothing was changed.",
        hint=f"Ask for less, remove agents that are not needed, or have an operator raise the plan's {bound}.",
        errors=errors,
    )


def _quota_path(tenant: TenantId) -> str:
    return f"/tenants/{tenant}/quota"


def _budget_path(tenant: TenantId) -> str:
    return f"/tenants/{tenant}/budget"


def _reservation(record: AgentRecord) -> str:
    return f"/tenants/{record.tenant}/reservations/{record.decision_id}"


def _reservation_value(record: AgentRecord) -> bytes:
    return orjson.dumps({"agent_id": record.spec.agent_id} | record.spec.budget.to_json())
