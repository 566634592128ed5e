"""The platform's own API: agents and status, with application/problem+json for every refusal."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.roles import Scope
from cluster.limits.callers import shown_to
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange
from serve_apps.queries import read_query

_PAGE: Final = frozenset({"after", "limit"})
IF_MATCH_PATTERN: Final = r'\*|"[0-9a-f]{64}"'
_IF_MATCH: Final = re.compile(IF_MATCH_PATTERN)


class NativeRoutes:
    """The handlers under /api/v1."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def register(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/agents: admit an agent; 201, or 200 when the same agent is registered already."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_REGISTER)
        body = await edge.body(request)
        key = request.headers.get("idempotency-key", "")
        if len(key) > 255:
            raise InvalidRequestError("The Idempotency-Key has more than 255 characters.")
        answer = await edge.governance.call("register", principal.to_json(), body, exchange.request_id, key)
        return _json(answer["answer"], 201 if answer["created"] else 200)

    async def list(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/agents?after=&limit=: the caller's agents in order of id."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        query = read_query(request, _PAGE)
        after, limit = query.get("after", ""), int(query.get("limit", "100"))
        page = await self._edge.governance.call("list", principal.to_json(), after, limit)
        return _json(page)

    async def show(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/agents/{agent_id}: one of the caller's agents, with what is enforced on it while it lives."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        agent = await self._edge.governance.call("get", principal.to_json(), request.path_params["agent_id"])
        return _tagged(_json(agent), agent)

    async def change(self, request: Request, exchange: Exchange) -> Response:
        """PUT /api/v1/agents/{agent_id}: admit another specification for an agent; it takes effect as a new generation."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_REGISTER)
        body, match = await edge.body(request), _if_match(request)
        agent_id = request.path_params["agent_id"]
        answer = await edge.governance.call("change", principal.to_json(), agent_id, body, exchange.request_id, match)
        agent = answer["agent"]
        status = "changed" if answer["changed"] else "unchanged"
        said = {"status": status, "agent_id": agent["agent_id"], "security_clearance": "validated"}
        return _tagged(_json(said | {"spec_digest": agent["spec_digest"]}), agent)

    async def remove(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /api/v1/agents/{agent_id}: revoke; the agent does not wake again and its quota comes back."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_REMOVE)
        agent_id = request.path_params["agent_id"]
        return _json(await self._edge.governance.call("remove", principal.to_json(), agent_id, exchange.request_id))

    async def status(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/status: the caller's live agents, what confines tools, the policy in force; for operators what waits."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        status = await self._edge.governance.call("status")
        status["live"] = [x for x in status["live"] if x["tenant"] == str(principal.tenant)]
        # How much all tenants together do is the operator's to know.
        warm_pool = status.pop("warm_pool")
        if Scope.TENANTS_MANAGE in principal.scopes:
            status |= {"warm_pool": warm_pool, "journal": self._edge.gate.status()}
        return _json(status)

    async def limits(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/limits: what is used and left of the caller's tenant's budgets and rates, as this gateway heard last."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        leases = self._edge.leases
        return _json(leases.use(shown_to(principal)) if leases is not None else {"accounts": [], "rates": []})

    async def live(self, request: Request, exchange: Exchange) -> Response:
        """GET /health/live: this process answers."""
        return _json({"status": "live"})

    async def ready(self, request: Request, exchange: Exchange) -> Response:
        """GET /health/ready: governance answers too; 503 otherwise."""
        await self._edge.ready()
        return _json({"status": "ready"})


def _if_match(request: Request) -> str:
    """Return the digest in If-Match, "*", or nothing without one; an empty one is an odd one, and not none."""
    given = request.headers.get("if-match")
    if given is None:
        return ""
    if not _IF_MATCH.fullmatch(given):
        raise InvalidRequestError(
            "If-Match is not valid.",
            errors=[FieldError("If-Match", "must be the ETag of the agent as it was read, in its quotes, or *")],
        )
    return given.strip('"')


def _tagged(response: Response, agent: dict[str, Any]) -> Response:
    response.headers["etag"] = f'"{agent["spec_digest"]}"'
    return response


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type="application/json")
