"""Who asks: the result of authentication, and the only source of the tenant that a request works in."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.roles import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who was authenticated. `subject` names the credential ("key:3f9a…") or the user, never in personal data."""

    tenant: TenantId
    project: ProjectId
    subject: str
    scopes: frozenset[Scope]
    # The agent that asks on behalf of whoever called it, and how often the work was handed on by then; empty and 0 for others.
    agent: str = ""
    depth: int = 0

    def to_json(self) -> str:
        """Return this principal as JSON, for another process of the platform."""
        names = sorted(self.scopes)
        return orjson.dumps([self.tenant, self.project, self.subject, names, self.agent, self.depth]).decode()

    @classmethod
    def from_json(cls, text: str) -> Principal:
        """Return the principal that `to_json` wrote."""
        tenant, project, subject, scopes, agent, depth = orjson.loads(text)
        return cls(TenantId(tenant), ProjectId(project), subject, frozenset(Scope(s) for s in scopes), agent, depth)
