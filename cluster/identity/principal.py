"""Who asks: the result of authentication, and the only source of the tenant that a request works in."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.roles import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who was authenticated. `subject` names the credential ("key:3f9a…") or the user, never in personal data."""

    tenant: TenantId
    project: ProjectId
    subject: str
    scopes: frozenset[Scope]
