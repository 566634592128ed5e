"""All routes in one table; serve_apps/openapi.py describes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.admission.tenancy_requests import (
    AllowanceChange,
    KeyRequest,
    KeyRotation,
    ProjectRequest,
    TenantChange,
    TenantRequest,
)
from cluster.agents.gang_request import GangRequest
from cluster.agents.registration import RegistrationRequest
from cluster.errors import NotFoundError, SovereignError
from cluster.identity.authorization_server import AuthorizationServer
from serve_apps.a2a import A2aMessage
from serve_apps.a2a_routes import CARD as A2A_CARD
from serve_apps.a2a_routes import PATH as A2A
from serve_apps.a2a_routes import A2aRoutes
from serve_apps.chat import ChatRequest
from serve_apps.edge import Edge, Handler
from serve_apps.exchange import Exchange
from serve_apps.gang_routes import GangRoutes
from serve_apps.langgraph_table import langgraph_table
from serve_apps.mcp import McpMessage
from serve_apps.mcp_routes import PATH as MCP
from serve_apps.mcp_routes import McpRoutes
from serve_apps.native_routes import NativeRoutes
from serve_apps.oauth_routes import OAuthRoutes
from serve_apps.openai_routes import OpenAIRoutes
from serve_apps.openapi import complete, operation, summary_of
from serve_apps.responses import ResponseRequest
from serve_apps.responses_routes import ResponsesRoutes
from serve_apps.run_requests import RunBody
from serve_apps.run_routes import RunRoutes
from serve_apps.tenancy_routes import TenancyRoutes

# Calls that are done once for each Idempotency-Key. Registrations heed it by themselves.
IDEMPOTENT = {"/v1/chat/completions", "/v1/responses", "/api/v1/agents/{agent_id}/runs"}
Endpoint = Callable[[Request], Awaitable[Response]]


class MethodNotAllowedError(SovereignError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class Application:
    """FastAPI with a short way past it for calls, whose routing and middleware would cost as much as all of our own work."""

    def __init__(self, app: FastAPI, calls: dict[tuple[str, str], Endpoint]) -> None:
        self._app = app
        self._calls = calls

    def is_call(self, scope: Scope) -> bool:
        """Whether a request takes the short way."""
        return scope["type"] == "http" and (scope["method"], scope["path"]) in self._calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        endpoint = self._calls[scope["method"], scope["path"]] if self.is_call(scope) else None
        if endpoint is None:
            await self._app(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)


def create_app(edge: Edge, tokens: AuthorizationServer | None = None) -> Application:
    """Return the gateway's ASGI application, with the routes of OAuth where `tokens` answers them."""
    app = FastAPI(
        title="Sovereign",
        version="1",
        description="Run AI agents on your own machines, with a record of what was allowed, what was done and what it used.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    a2a = A2aRoutes(edge)
    native, gangs, openai, tenancy = NativeRoutes(edge), GangRoutes(edge), OpenAIRoutes(edge), TenancyRoutes(edge)
    responses, response = ResponsesRoutes(edge), "/v1/responses/{response_id}"
    runs, run = RunRoutes(edge), "/api/v1/runs/{run_id}"
    agent, gang = "/api/v1/agents/{agent_id}", "/api/v1/gangs/{gang_id}"
    tenants, tenant = "/api/v1/tenants", "/api/v1/tenants/{tenant_id}"
    keys, key = "/api/v1/keys", "/api/v1/keys/{key_id}"
    table: list[tuple[str, str, Handler, type[BaseModel] | None, tuple[int, ...]]] = [
        ("POST", "/v1/chat/completions", openai.chat_completions, ChatRequest, (200,)),
        ("GET", "/v1/models", openai.models, None, (200,)),
        ("GET", "/v1/models/{model}", openai.model, None, (200,)),
        ("POST", "/v1/responses", responses.create_response, ResponseRequest, (200,)),
        ("GET", response, responses.show_response, None, (200,)),
        ("DELETE", response, responses.delete_response, None, (200,)),
        ("POST", f"{response}/cancel", responses.cancel_response, None, (200,)),
        ("POST", "/api/v1/agents", native.register, RegistrationRequest, (201, 200)),
        ("GET", "/api/v1/agents", native.list, None, (200,)),
        ("GET", agent, native.show, None, (200,)),
        ("PUT", agent, native.change, RegistrationRequest, (200,)),
        ("DELETE", agent, native.remove, None, (200,)),
        ("GET", tenants, tenancy.list_tenants, None, (200,)),
        ("POST", tenants, tenancy.make_tenant, TenantRequest, (201,)),
        ("GET", tenant, tenancy.show_tenant, None, (200,)),
        ("PATCH", tenant, tenancy.change_tenant, TenantChange, (200,)),
        ("GET", f"{tenant}/projects", tenancy.list_projects, None, (200,)),
        ("POST", f"{tenant}/projects", tenancy.make_project, ProjectRequest, (201,)),
        ("PATCH", f"{tenant}/projects/{{project_id}}", tenancy.change_project, AllowanceChange, (200,)),
        ("GET", keys, tenancy.list_keys, None, (200,)),
        ("POST", keys, tenancy.make_key, KeyRequest, (201,)),
        ("GET", key, tenancy.show_key, None, (200,)),
        ("PATCH", key, tenancy.change_key, AllowanceChange, (200,)),
        ("POST", f"{key}/rotate", tenancy.rotate_key, KeyRotation, (200,)),
        ("DELETE", key, tenancy.revoke_key, None, (200,)),
        ("POST", "/api/v1/gangs", gangs.register_gang, GangRequest, (201, 200)),
        ("GET", gang, gangs.show_gang, None, (200,)),
        ("DELETE", gang, gangs.remove_gang, None, (200,)),
        ("POST", f"{agent}/runs", runs.start_run, RunBody, (202, 200)),
        ("GET", "/api/v1/runs", runs.list_runs, None, (200,)),
        ("GET", run, runs.show_run, None, (200,)),
        ("GET", f"{run}/events", runs.follow_run, None, (200,)),
        ("POST", f"{run}/cancel", runs.cancel_run, None, (200,)),
        ("DELETE", run, runs.delete_run, None, (200,)),
        ("GET", "/api/v1/webhooks/secret", runs.webhook_secret, None, (200,)),
        ("POST", MCP, McpRoutes(edge).message, McpMessage, (200, 202)),
        ("POST", A2A, a2a.a2a_message, A2aMessage, (200,)),
        ("GET", A2A_CARD, a2a.agent_card, None, (200,)),
        ("GET", "/api/v1/status", native.status, None, (200,)),
        ("GET", "/api/v1/limits", native.limits, None, (200,)),
        ("GET", "/health/live", native.live, None, (200,)),
        ("GET", "/health/ready", native.ready, None, (200,)),
        *langgraph_table(edge),
    ]
    calls: dict[tuple[str, str], Endpoint] = {}
    for method, path, handler, body, statuses in table:
        endpoint = edge.route(
            handler,
            f"{method} {path}",
            openai=path.startswith("/v1/"),
            takes_body=body is not None,
            idempotent=method == "POST" and path in IDEMPOTENT,
        )
        if handler in (openai.chat_completions, responses.create_response):
            calls[method, path] = endpoint
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_class=Response,
            response_model=None,
            name=handler.__name__,
            summary=summary_of(handler.__doc__ or ""),
            description="",
            status_code=statuses[0],
            openapi_extra=operation(handler.__name__, path, body, statuses),
        )

    if tokens is not None:
        OAuthRoutes(edge, tokens).add_to(app)

    async def not_routed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        refused: SovereignError = (
            MethodNotAllowedError(f"{request.method} is not a method of this path.")
            if status == 405
            else NotFoundError("There is no such path.", hint="/openapi.json lists what there is.")
        )
        exchange = Exchange(request_id="", trace_id="", authorization="")
        try:
            exchange = Exchange.of(request)
        except SovereignError as odd:
            refused = odd
        return edge.refuse(refused, exchange, request.url.path, openai=request.url.path.startswith("/v1/"))

    app.add_exception_handler(HTTPException, not_routed)
    complete(app)
    return Application(app, calls)
