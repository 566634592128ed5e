"""Who the tenants are: those that the policy data declares, and beside them those that an operator made at run time.

What is declared can't be changed here, and wins over what was made under the same name. One that was made names a plan
of the policy data.

/tenancy/<tenant>                       a tenant that was made
/tenants/<tenant>/projects/<project>    a project that was made; every tenant has the project `default`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from cluster.admission.catalog import Catalog, Plan
from cluster.clock import utc
from cluster.coordination.coordination import Coordination
from cluster.errors import IntegrityError
from cluster.identity.ids import ProjectId, TenantId

DEFAULT_PROJECT: Final = ProjectId("default")
FOLDER: Final = "/tenancy"


class TenantState(StrEnum):
    """Whether a tenant may do anything: of a suspended one no key is taken and no agent wakes, and nothing is lost."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `made_by` and `made_us` (microseconds since 1970 UTC) are empty and 0 for one that the policy data declares."""

    tenant_id: TenantId
    plan: str
    state: TenantState
    made_by: str = ""
    made_us: int = 0

    @property
    def declared(self) -> bool:
        """Whether the policy data declares it, so that it can't be changed at run time."""
        return not self.made_us

    def to_bytes(self) -> bytes:
        """Return the value of this tenant's node."""
        return orjson.dumps({"plan": self.plan, "state": self.state, "made_by": self.made_by, "made_us": self.made_us})

    @classmethod
    def from_bytes(cls, tenant_id: TenantId, value: bytes) -> Tenant:
        """Return the tenant that `to_bytes` wrote; raises IntegrityError for anything else."""
        try:
            stored: dict[str, Any] = orjson.loads(value)
            state = TenantState(stored["state"])
            return cls(tenant_id, str(stored["plan"]), state, str(stored["made_by"]), int(stored["made_us"]))
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"The stored tenant {tenant_id} can't be read: {e!r}.") from None

    def to_public(self) -> dict[str, Any]:
        """Return what operators see of it."""
        return {
            "tenant_id": str(self.tenant_id),
            "plan": self.plan,
            "state": self.state.value,
            "source": "policy" if self.declared else "administrator",
            "created_at": None if self.declared else utc(self.made_us).isoformat(),
            "created_by": self.made_by or None,
        }


class Tenants:
    """Reads them; safe to use from many threads."""

    def __init__(self, coordination: Coordination, catalog: Callable[[], Catalog]) -> None:
        """`catalog` returns the policy data in force now."""
        self._coordination = coordination
        self._catalog = catalog

    def find(self, tenant: str) -> Tenant | None:
        """Return a tenant, as it is declared if it is, or None."""
        name = TenantId(tenant)
        return self._declared(name) or find_made(self._coordination, name)

    def plan_of(self, tenant: str) -> Plan | None:
        """Return the plan of a tenant; None without such a tenant, or when the policy data lost its plan."""
        known = self.find(tenant)
        return self._catalog().plans.get(known.plan) if known else None

    def standing(self, tenant: str) -> dict[str, Any] | None:
        """Return what a policy is told of a tenant that the data does not declare; None for one that it does, or that is none."""
        known = self.find(tenant)
        if known is None or known.declared:
            return None
        return {"plan": known.plan, "active": known.state is TenantState.ACTIVE}

    def may_have_raw_actors(self, tenant: str) -> bool:
        """Return whether the jobs of a tenant may create Ray actors of their own."""
        known, plan = self.find(tenant), self.plan_of(tenant)
        return known is not None and known.state is TenantState.ACTIVE and plan is not None and plan.raw_actors

    def page(self, after: str, limit: int) -> list[Tenant]:
        """Return up to `limit` tenants in order of their names, from the first one greater than `after` on."""
        names = set(self._coordination.children(FOLDER, after=after, limit=limit))
        names |= {str(name) for name in self._catalog().tenants if name > after}
        found = (self.find(name) for name in sorted(names)[:limit])
        return [tenant for tenant in found if tenant is not None]

    def projects(self, tenant: TenantId) -> Iterator[ProjectId]:
        """Yield the tenant's projects in order of their names, the one that each has among them."""
        names = {str(DEFAULT_PROJECT)}
        after, folder = "", f"/tenants/{tenant}/projects"
        while found := self._coordination.children(folder, after=after):
            names |= set(found)
            after = found[-1]
        yield from map(ProjectId, sorted(names))

    def has_project(self, tenant: TenantId, project: ProjectId) -> bool:
        """Return whether the tenant has the project."""
        return project == DEFAULT_PROJECT or self._coordination.get(project_path(tenant, project)) is not None

    def _declared(self, tenant: TenantId) -> Tenant | None:
        entry = self._catalog().tenants.get(tenant)
        state = TenantState.ACTIVE if entry and entry.active else TenantState.SUSPENDED
        return Tenant(tenant, entry.plan, state) if entry else None


def find_made(coordination: Coordination, tenant: TenantId) -> Tenant | None:
    """Return the tenant that was made at run time under this name, or None."""
    node = coordination.get(tenant_path(tenant))
    return Tenant.from_bytes(tenant, node.value) if node else None


def tenant_path(tenant: TenantId) -> str:
    """Return the node of a tenant that was made."""
    return f"{FOLDER}/{tenant}"


def project_path(tenant: TenantId, project: ProjectId) -> str:
    """Return the node of a project that was made."""
    return f"/tenants/{tenant}/projects/{project}"
