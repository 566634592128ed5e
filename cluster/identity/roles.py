"""What a principal may ask for, and the usual bundles of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """One permission, as platform:resource:action. `policies/invocation.rego` says which action needs which."""

    AGENTS_REGISTER = "sovereign:agents:register"
    AGENTS_READ = "sovereign:agents:read"
    AGENTS_LIST = "sovereign:agents:list"
    AGENTS_REMOVE = "sovereign:agents:remove"
    AGENTS_INVOKE = "sovereign:agents:invoke"
    USAGE_READ = "sovereign:usage:read"
    AUDIT_READ = "sovereign:audit:read"
    KEYS_MANAGE = "sovereign:keys:manage"
    # Over all tenants: who they are, by which plan, and whether they may do anything.
    TENANTS_MANAGE = "sovereign:tenants:manage"


class Role(StrEnum):
    """A usual set of scopes."""

    # Runs the cluster, and so stands above all tenants.
    OPERATOR = "operator"
    # Runs one tenant.
    ADMIN = "admin"
    DEVELOPER = "developer"
    CALLER = "caller"
    ANALYST = "analyst"
    AUDITOR = "auditor"


ROLE_SCOPES: Final[dict[Role, frozenset[Scope]]] = {
    Role.OPERATOR: frozenset(Scope),
    Role.ADMIN: frozenset(Scope) - {Scope.TENANTS_MANAGE},
    Role.DEVELOPER: frozenset(
        {
            Scope.AGENTS_REGISTER,
            Scope.AGENTS_READ,
            Scope.AGENTS_LIST,
            Scope.AGENTS_REMOVE,
            Scope.AGENTS_INVOKE,
            Scope.USAGE_READ,
        }
    ),
    Role.CALLER: frozenset({Scope.AGENTS_INVOKE, Scope.AGENTS_READ, Scope.AGENTS_LIST}),
    Role.ANALYST: frozenset({Scope.USAGE_READ}),
    Role.AUDITOR: frozenset({Scope.USAGE_READ, Scope.AUDIT_READ, Scope.AGENTS_READ, Scope.AGENTS_LIST}),
}
