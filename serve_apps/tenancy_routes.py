"""Tenants and projects for operators, keys for whoever administers a tenant: /api/v1/tenants and /api/v1/keys."""

from __future__ import annotations

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.identity.roles import Scope
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange
from serve_apps.queries import read_query

_PAGE: Final = frozenset({"after", "limit"})


class TenancyRoutes:
    """The handlers; what they mean is `cluster.admission.tenancy`'s."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def list_tenants(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/tenants?after=&limit=: the tenants in order of name, declared and made; for operators."""
        return await self._do(request, exchange, "tenants.list", query=_PAGE)

    async def make_tenant(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/tenants: make a tenant of a plan; for operators."""
        return await self._do(request, exchange, "tenants.make", body=True, status=201)

    async def show_tenant(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/tenants/{tenant_id}: a tenant with its projects; for operators."""
        return await self._do(request, exchange, "tenants.show")

    async def change_tenant(self, request: Request, exchange: Exchange) -> Response:
        """PATCH /api/v1/tenants/{tenant_id}: give a tenant another plan, suspend or resume it; for operators."""
        return await self._do(request, exchange, "tenants.change", body=True)

    async def list_projects(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/tenants/{tenant_id}/projects: the projects of a tenant; for operators."""
        return await self._do(request, exchange, "projects.list")

    async def make_project(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/tenants/{tenant_id}/projects: make a project of a tenant; for operators."""
        return await self._do(request, exchange, "projects.make", body=True, status=201)

    async def change_project(self, request: Request, exchange: Exchange) -> Response:
        """PATCH /api/v1/tenants/{tenant_id}/projects/{project_id}: give a project another budget or limits; for operators."""
        return await self._do(request, exchange, "projects.change", body=True)

    async def list_keys(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/keys?after=&limit=: the keys of the caller's tenant, never their secrets."""
        return await self._do(request, exchange, "keys.list", query=_PAGE | {"tenant_id"})

    async def make_key(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/keys: make a key with no more rights than the caller's; its text is in this answer and nowhere else."""
        return await self._do(request, exchange, "keys.make", body=True, status=201)

    async def show_key(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/keys/{key_id}: one key of the caller's tenant, never its secret."""
        return await self._do(request, exchange, "keys.show", query=frozenset({"tenant_id"}))

    async def change_key(self, request: Request, exchange: Exchange) -> Response:
        """PATCH /api/v1/keys/{key_id}: give a key another budget or other limits."""
        return await self._do(request, exchange, "keys.change", body=True, query=frozenset({"tenant_id"}))

    async def rotate_key(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/keys/{key_id}/rotate: give a key a new secret; the old one is taken for the overlap that is asked for."""
        return await self._do(request, exchange, "keys.rotate", body=True, query=frozenset({"tenant_id"}))

    async def revoke_key(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /api/v1/keys/{key_id}: end a key; no gateway takes it after 2 seconds."""
        return await self._do(request, exchange, "keys.revoke", query=frozenset({"tenant_id"}))

    async def _do(
        self,
        request: Request,
        exchange: Exchange,
        operation: str,
        *,
        body: bool = False,
        status: int = 200,
        query: frozenset[str] = frozenset(),
    ) -> Response:
        edge = self._edge
        scope = Scope.KEYS_MANAGE if operation.startswith("keys.") else Scope.TENANTS_MANAGE
        principal = edge.authenticate(exchange, scope)
        named = read_query(request, query) | {name: str(value) for name, value in request.path_params.items()}
        content = await edge.body(request) if body else b""
        answer = await edge.governance.call("administer", principal.to_json(), operation, named, content, exchange.request_id)
        # An answer may hold a key's secret: nothing on the way may keep it.
        headers = {"cache-control": "no-store"}
        return Response(orjson.dumps(answer), status_code=status, media_type="application/json", headers=headers)
