"""Gangs under /api/v1/gangs: agents that are registered, started and removed together, or not at all."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.identity.roles import Scope
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange


class GangRoutes:
    """The handlers of gangs; what a gang may do takes the scopes of what its agents may."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def register_gang(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/gangs: admit several agents, all or none; 201, or 200 when the same gang is registered already."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_REGISTER)
        body = await edge.body(request)
        answer = await edge.governance.call("register_gang", principal.to_json(), body, exchange.request_id)
        said = {"status": "registered", "gang_id": answer["gang_id"], "agents": answer["agents"]}
        return _json(said | {"security_clearance": "validated"}, 201 if answer["created"] else 200)

    async def show_gang(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/gangs/{gang_id}: the members of one of the caller's gangs, and how they are placed."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        return _json(await self._edge.governance.call("get_gang", principal.to_json(), request.path_params["gang_id"]))

    async def remove_gang(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /api/v1/gangs/{gang_id}: revoke all members; none wakes again, and their quota and room come back."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_REMOVE)
        gang_id = request.path_params["gang_id"]
        return _json(await self._edge.governance.call("remove_gang", principal.to_json(), gang_id, exchange.request_id))


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type="application/json")
