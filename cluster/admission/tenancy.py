"""Tenants and projects for those who administer them, and the door through which governance is asked for that and for keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from cluster.admission.allowances import Allowance, Allowances
from cluster.admission.decision_journal import DecisionJournal
from cluster.admission.key_administration import KeyAdministration
from cluster.admission.tenancy_journal import TenancyJournal
from cluster.admission.tenancy_requests import (
    AllowanceChange,
    KeyRequest,
    KeyRotation,
    ProjectRequest,
    TenantChange,
    TenantRequest,
    parse,
)
from cluster.admission.tenants import Tenant, Tenants, TenantState, find_made, project_path, tenant_path
from cluster.clock import Clock
from cluster.coordination.coordination import Check, Coordination, Create, Op, Set
from cluster.errors import (
    AdmissionDeniedError,
    ConflictError,
    FieldError,
    NotFoundError,
)
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction


class Tenancy:
    """Who administers tenants is an operator, who administers keys has that scope; safe to use from many threads."""

    def __init__(
        self,
        coordination: Coordination,
        tenants: Tenants,
        plans: Callable[[], frozenset[str]],
        *,
        fence: Check,
        journal: DecisionJournal,
        clock: Clock,
    ) -> None:
        """`plans` returns the names of the plans in force now; `fence` is the governor's."""
        self._coordination = coordination
        self._tenants = tenants
        self._plans = plans
        self._clock = clock
        self._journal = TenancyJournal(journal, fence)
        self.allowances = Allowances(coordination)
        self.keys = KeyAdministration(coordination, tenants, self.allowances, self._journal, clock)

    def answer(self, who: Principal, operation: str, named: dict[str, str], body: bytes = b"", request_id: str = "") -> Any:
        """Do one of the operations below and return its answer as JSON values; `named` holds what path and query name.

        Raises AdmissionDeniedError when `who` lacks the scope: before anything that is named is looked at.
        """
        needed = Scope.KEYS_MANAGE if operation.startswith("keys.") else Scope.TENANTS_MANAGE
        if needed not in who.scopes:
            raise AdmissionDeniedError(f"This needs the scope {needed.value}.")
        tenant, key_id = named.get("tenant_id", ""), named.get("key_id", "")
        page = named.get("after", ""), int(named.get("limit", "100"))
        project = named.get("project_id", "")

        def one() -> TenantId:
            return TenantId.parse(tenant, "tenant_id")

        operations: dict[str, Callable[[], Any]] = {
            "tenants.list": lambda: self.list(*page),
            "tenants.make": lambda: self.make(who, parse(TenantRequest, body), request_id),
            "tenants.show": lambda: self.show(one()),
            "tenants.change": lambda: self.change(who, one(), parse(TenantChange, body), request_id),
            "projects.list": lambda: self.projects(one()),
            "projects.make": lambda: self.make_project(who, one(), parse(ProjectRequest, body), request_id),
            "projects.change": lambda: self.change_project(who, one(), project, parse(AllowanceChange, body), request_id),
            "keys.list": lambda: self.keys.list(who, tenant, *page),
            "keys.make": lambda: self.keys.make(who, parse(KeyRequest, body), request_id),
            "keys.show": lambda: self.keys.show(who, tenant, key_id),
            "keys.change": lambda: self.keys.change(who, tenant, key_id, parse(AllowanceChange, body), request_id),
            "keys.rotate": lambda: self.keys.rotate(who, tenant, key_id, parse(KeyRotation, body), request_id),
            "keys.revoke": lambda: self.keys.revoke(who, tenant, key_id, request_id),
        }
        return operations[operation]()

    def list(self, after: str, limit: int) -> dict[str, Any]:
        """Return up to `limit` tenants with names after `after`, declared and made, and the name to go on from."""
        page = self._tenants.page(after, limit)
        following = page[-1].tenant_id if len(page) == limit else ""
        return {"tenants": [tenant.to_public() for tenant in page], "next": following}

    def show(self, tenant: TenantId) -> dict[str, Any]:
        """Return a tenant with its projects; raises NotFoundError."""
        return self._known(tenant).to_public() | {"projects": [str(p) for p in self._tenants.projects(tenant)]}

    def make(self, who: Principal, request: TenantRequest, request_id: str) -> dict[str, Any]:
        """Make an active tenant; raises ConflictError when there is one of this name, NotFoundError for no such plan."""
        self._check_plan(request.plan)
        if self._tenants.find(request.tenant_id) is not None:
            raise ConflictError(
                f"There is a tenant {request.tenant_id} already.", hint="Choose another name, or change that one."
            )
        tenant = Tenant(request.tenant_id, request.plan, TenantState.ACTIVE, who.subject, self._clock.now_us())
        self._journal.change(
            AuditAction.TENANT_MAKE,
            who,
            tenant=tenant.tenant_id,
            object_id=tenant.tenant_id,
            request_id=request_id,
            effect=lambda: self._coordination.transact(
                [self._journal.fence, Create(tenant_path(tenant.tenant_id), tenant.to_bytes())]
            ),
            detail={"plan": tenant.plan},
        )
        return self.show(tenant.tenant_id)

    def change(self, who: Principal, tenant_id: TenantId, request: TenantChange, request_id: str) -> dict[str, Any]:
        """Give a tenant another plan, suspend it, or resume it; what it is already changes nothing.

        Raises NotFoundError, also for no such plan, and ConflictError for one that the policy data declares.
        """
        if self._known(tenant_id).declared and find_made(self._coordination, tenant_id) is None:
            raise ConflictError(
                f"Tenant {tenant_id} is declared by the policy data, which wins.", hint="Change it in tenants.yaml."
            )
        given = request.model_fields_set
        if "plan" in given:
            self._check_plan(request.plan)
        values: dict[str, Any] = {name: getattr(request, name) for name in ("plan", "state") if name in given}
        self._journal.change(
            AuditAction.TENANT_CHANGE,
            who,
            tenant=tenant_id,
            object_id=tenant_id,
            request_id=request_id,
            effect=lambda: self._store(tenant_id, values),
            detail={name: str(value) for name, value in values.items()},
        )
        return self.show(tenant_id)

    def projects(self, tenant: TenantId) -> dict[str, Any]:
        """Return a tenant's projects with their budgets and limits; raises NotFoundError."""
        self._known(tenant)
        return {"projects": [self._project(tenant, name) for name in self._tenants.projects(tenant)]}

    def make_project(self, who: Principal, tenant: TenantId, request: ProjectRequest, request_id: str) -> dict[str, Any]:
        """Make a project, also of a tenant that the policy data declares; raises NotFoundError, ConflictError."""
        self._known(tenant)
        project = request.project_id
        if self._tenants.has_project(tenant, project):
            raise ConflictError(f"Tenant {tenant} has a project {project} already.")
        made = orjson.dumps({"made_by": who.subject, "made_us": self._clock.now_us()})
        allowance = Allowance(request.budget, request.limits)
        ops: tuple[Op, ...] = (
            self._journal.fence,
            Create(project_path(tenant, project), made),
            *self.allowances.ops_to_create(tenant, "project", project, allowance),
        )
        self._journal.change(
            AuditAction.PROJECT_MAKE,
            who,
            tenant=tenant,
            object_id=project,
            request_id=request_id,
            effect=lambda: self._coordination.transact(ops),
            detail=allowance.to_public(),
        )
        return {"tenant_id": str(tenant)} | self._project(tenant, project)

    def change_project(
        self, who: Principal, tenant: TenantId, project_id: str, request: AllowanceChange, request_id: str
    ) -> dict[str, Any]:
        """Give a project another budget or other limits, also `default` and a declared tenant's; raises NotFoundError."""
        self._known(tenant)
        project = ProjectId.parse(project_id, "project_id")
        if not self._tenants.has_project(tenant, project):
            raise NotFoundError(f"Tenant {tenant} has no project {project}.", hint="List the projects to see which there are.")
        self._journal.change(
            AuditAction.PROJECT_CHANGE,
            who,
            tenant=tenant,
            object_id=project,
            request_id=request_id,
            effect=lambda: self.allowances.change(tenant, "project", project, request.given, self._journal.fence),
            detail=request.given,
        )
        return {"tenant_id": str(tenant)} | self._project(tenant, project)

    def _project(self, tenant: TenantId, project: ProjectId) -> dict[str, Any]:
        return {"project_id": str(project)} | self.allowances.shown(tenant, "project", project)

    def _store(self, tenant_id: TenantId, values: dict[str, Any]) -> None:
        node = self._coordination.get(tenant_path(tenant_id))
        if node is None:
            raise NotFoundError(f"There is no tenant {tenant_id}.")
        changed = replace(Tenant.from_bytes(tenant_id, node.value), **values)
        self._coordination.transact([self._journal.fence, Set(tenant_path(tenant_id), changed.to_bytes(), node.version)])

    def _known(self, tenant: TenantId) -> Tenant:
        known = self._tenants.find(tenant)
        if known is None:
            raise NotFoundError(f"There is no tenant {tenant}.", hint="List the tenants to see which there are.")
        return known

    def _check_plan(self, plan: str) -> None:
        if plan not in (known := self._plans()):
            wrong = FieldError("plan", f"must be one of {', '.join(sorted(known))}")
            raise NotFoundError(f"There is no plan {plan}.", errors=[wrong])
