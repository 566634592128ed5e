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


class Role(StrEnum):
    """A usual set of scopes."""

    ADMIN = "admin"
    DEVELOPER = "developer"
    CALLER = "caller"
    ANALYST = "analyst"
    AUDITOR = "auditor"


ROLE_SCOPES: Final[dict[Role, frozenset[Scope]]] = {
    Role.ADMIN: frozenset(Scope),
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
