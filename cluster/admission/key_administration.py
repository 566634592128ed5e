"""API keys for those who administer them: made, rotated and revoked on the record, with no more rights than who does it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.admission.allowances import Allowance, Allowances
from cluster.admission.tenancy_journal import TenancyJournal
from cluster.admission.tenancy_requests import AllowanceChange, KeyRequest, KeyRotation
from cluster.admission.tenants import DEFAULT_PROJECT, Tenants
from cluster.clock import Clock
from cluster.coordination.coordination import Coordination
from cluster.errors import AdmissionDeniedError, FieldError, NotFoundError
from cluster.identity.api_key import ApiKey, new_key
from cluster.identity.api_keys import change_key, find_key, list_keys, ops_to_create, revoked
from cluster.identity.ids import TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction
from cluster.limits.callers import owners


class KeyAdministration:
    """A tenant's administrator sees the keys of its own tenant alone; an operator those of the tenant that is named."""

    def __init__(
        self, coordination: Coordination, tenants: Tenants, allowances: Allowances, journal: TenancyJournal, clock: Clock
    ) -> None:
        self._coordination = coordination
        self._tenants = tenants
        self._allowances = allowances
        self._journal = journal
        self._clock = clock

    def list(self, who: Principal, tenant: str, after: str, limit: int) -> dict[str, Any]:
        """Return up to `limit` keys with ids after `after`, and the id to go on from; `tenant` is empty for one's own."""
        keys = list_keys(self._coordination, self._whose(who, tenant), after=after, limit=limit)
        return {"keys": [self._shown(key) for key in keys], "next": keys[-1].key_id if len(keys) == limit else ""}

    def show(self, who: Principal, tenant: str, key_id: str) -> dict[str, Any]:
        """Return one key; raises NotFoundError, also for another tenant's."""
        return self._shown(find_key(self._coordination, self._whose(who, tenant), key_id))

    def make(self, who: Principal, request: KeyRequest, request_id: str) -> dict[str, Any]:
        """Return a new key with its text, which is shown this once.

        Raises AdmissionDeniedError for more rights than `who` has, NotFoundError for a tenant or project that is not there.
        """
        tenant = self._whose(who, request.tenant_id if "tenant_id" in request.model_fields_set else "")
        own = who.project if tenant == who.tenant else DEFAULT_PROJECT
        project = request.project_id if "project_id" in request.model_fields_set else own
        # Whoever has a credential of a project works in it already, also when the project is of an external issuer.
        if project != own and not self._tenants.has_project(tenant, project):
            raise NotFoundError(f"There is no project {project}.", hint="An operator makes projects.")
        self._within(who, tenant, request.rights)
        self._unbounded(who)
        role = "" if request.scopes else request.role.value
        text, key = new_key(
            self._clock,
            tenant=tenant,
            project=project,
            scopes=request.rights,
            ttl_s=request.expires_in_s,
            name=request.name,
            role=role,
        )
        allowance = Allowance(request.budget, request.limits)
        ops = [self._journal.fence, *ops_to_create(key)]
        ops += self._allowances.ops_to_create(tenant, "key", key.key_id, allowance)
        detail = {"project": str(project), "scopes": sorted(request.rights), "expires_us": key.expires_us}
        self._journal.change(
            AuditAction.KEY_MAKE,
            who,
            tenant=tenant,
            object_id=key.key_id,
            request_id=request_id,
            effect=lambda: self._coordination.transact(ops),
            detail=detail | allowance.to_public(),
        )
        return {"key": text} | self._shown(key)

    def change(self, who: Principal, tenant: str, key_id: str, request: AllowanceChange, request_id: str) -> dict[str, Any]:
        """Give a key another budget or other limits; what it has used counts on. Raises as `rotate` does."""
        key = self._mine(who, tenant, key_id)
        self._unbounded(who)
        whose = key.principal.tenant
        self._journal.change(
            AuditAction.KEY_CHANGE,
            who,
            tenant=whose,
            object_id=key_id,
            request_id=request_id,
            effect=lambda: self._allowances.change(whose, "key", key_id, request.given, self._journal.fence),
            detail=request.given,
        )
        return self._shown(key)

    def rotate(self, who: Principal, tenant: str, key_id: str, request: KeyRotation, request_id: str) -> dict[str, Any]:
        """Return the key with the text of its new secret; the old one is taken for the overlap that was asked for.

        Raises NotFoundError, AdmissionDeniedError for a key with more rights than `who` has, or one that has ended.
        """
        key = self._mine(who, tenant, key_id)
        text = ""

        def rotated(found: ApiKey) -> ApiKey:
            nonlocal text
            if not found.holds(self._clock.now_us()):
                raise AdmissionDeniedError(f"The API key {key_id} has ended, so it gets no new secret.", hint="Make a new key.")
            text, changed = found.rotated(self._clock, overlap_s=request.overlap_s)
            return changed

        rotated(key)  # what is refused leaves no fact that allows it
        changed = self._change(
            AuditAction.KEY_ROTATE, who, key, rotated, request_id=request_id, detail={"overlap_s": request.overlap_s}
        )
        return {"key": text} | changed

    def revoke(self, who: Principal, tenant: str, key_id: str, request_id: str) -> dict[str, Any]:
        """End a key: no process takes it after 2 seconds. To end it twice changes nothing. Raises as `rotate` does."""
        key = self._mine(who, tenant, key_id)
        if key.revoked_us:
            return self._shown(key)
        return self._change(AuditAction.KEY_REVOKE, who, key, lambda found: revoked(found, self._clock), request_id=request_id)

    def _change(
        self,
        action: AuditAction,
        who: Principal,
        key: ApiKey,
        change: Callable[[ApiKey], ApiKey],
        *,
        request_id: str,
        detail: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        tenant, fence = key.principal.tenant, self._journal.fence
        changed = self._journal.change(
            action,
            who,
            tenant=tenant,
            object_id=key.key_id,
            request_id=request_id,
            effect=lambda: change_key(self._coordination, tenant, key.key_id, change, fence),
            detail=detail,
        )
        return self._shown(changed)

    def _shown(self, key: ApiKey) -> dict[str, Any]:
        return key.to_public(self._clock.now_us()) | self._allowances.shown(key.principal.tenant, "key", key.key_id)

    def _whose(self, who: Principal, tenant: str) -> TenantId:
        """Return whose keys are asked for; raises NotFoundError for a tenant that is another's, as for one that is none."""
        asked = TenantId.parse(tenant, "tenant_id") if tenant else who.tenant
        known = self._tenants.find(asked)
        if asked == who.tenant or (known is not None and Scope.TENANTS_MANAGE in who.scopes):
            return asked
        raise NotFoundError(f"There is no tenant {asked}.")

    def _mine(self, who: Principal, tenant: str, key_id: str) -> ApiKey:
        """Return a key that `who` may change: of no more rights than their own, or they could make it theirs."""
        key = find_key(self._coordination, self._whose(who, tenant), key_id)
        self._within(who, key.principal.tenant, key.principal.scopes)
        return key

    def _unbounded(self, who: Principal) -> None:
        """Refuse whoever is bounded by a key's budget: with another key, or another budget, they would be no more."""
        for scope, name in owners(who):
            if scope == "key" and self._allowances.find(who.tenant, scope, name) is not None:
                raise AdmissionDeniedError(
                    "A key with a budget or limits of its own makes no keys and changes none's budget.",
                    hint="Have somebody do it whose key has none.",
                )

    def _within(self, who: Principal, tenant: TenantId, scopes: frozenset[Scope]) -> None:
        beyond = scopes - who.scopes
        if tenant != who.tenant:
            beyond |= scopes & {Scope.TENANTS_MANAGE}  # who runs one tenant never runs the cluster
        if beyond:
            raise AdmissionDeniedError(
                "A key can have no more rights than whoever makes or changes it.",
                hint="Leave these scopes out, or have somebody do it who has them.",
                errors=[FieldError(scope.value, "is not yours to give") for scope in sorted(beyond)],
            )
