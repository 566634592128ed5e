"""MCP over streamable HTTP: one path, one message a request, nothing kept between them but what can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from actors.invoker import Invocation, InvocationStream
from cluster.admission.strict_json import parse_strict_json
from cluster.errors import AdmissionDeniedError, FieldError, NotFoundError, SovereignError
from cluster.identity.ids import AgentId, uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from serve_apps import json_rpc, mcp
from serve_apps.edge import Edge
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.json_rpc import MEDIA_TYPE, JsonRpcError, answer_to, error_to, read_message
from serve_apps.mcp import McpMessage

PATH: Final = "/mcp"
SESSION: Final = "mcp-session-id"
_PAGE: Final = 100
# A call as its client can name it again: the caller, the session, and the request's id as it was written.
_Name = tuple[Principal, str, str]


class McpRoutes:
    """The handler of /mcp."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._calls: dict[_Name, asyncio.Task[object]] = {}

    async def message(self, request: Request, exchange: Exchange) -> Response:
        """POST /mcp: one message of the Model Context Protocol; each agent that the caller may use is a tool."""
        edge = self._edge
        self._check_origin(request)
        principal = edge.authenticate(exchange, Scope.AGENTS_LIST)
        body = await edge.body(request)
        message: McpMessage | None = None
        try:
            message = read_message(McpMessage, parse_strict_json(body, max_bytes=edge.settings.max_body_bytes))
            mcp.check_version(request.headers.get("mcp-protocol-version", ""), message)
            return await self._answered(request, exchange, principal, message)
        except JsonRpcError as error:
            status = 400 if error.code in (json_rpc.INVALID_REQUEST, mcp.UNSUPPORTED_VERSION) else 200
            return Response(error_to(message.id if message else None, error), status_code=status, media_type=MEDIA_TYPE)

    async def _answered(self, request: Request, exchange: Exchange, principal: Principal, message: McpMessage) -> Response:
        if message.id is None:
            self._notified(request, principal, message)
            return Response(status_code=202)
        headers = {}
        if message.method == "initialize":
            result = mcp.initialized(message)
            headers[SESSION] = uuid7()
        elif message.method == "server/discover":
            result = mcp.discovered()
        elif message.method == "ping":
            result = {}
        elif message.method == "tools/list":
            after = mcp.params_of(mcp.ListParams, message).cursor or ""
            page = await self._edge.governance.call("list", principal.to_json(), after, _PAGE)
            result = mcp.tool_list(page["agents"], page["next"])
        elif message.method == "tools/call":
            return await self._call(request, exchange, principal, message)
        else:
            raise JsonRpcError(json_rpc.METHOD_NOT_FOUND, f"There is no method {message.method} here.")
        return Response(answer_to(message.id, result), media_type=MEDIA_TYPE, headers=headers)

    async def _call(self, request: Request, exchange: Exchange, principal: Principal, message: McpMessage) -> Response:
        edge, id_ = self._edge, message.id
        assert id_ is not None  # noqa: S101  # a notification calls nothing
        call = mcp.params_of(mcp.CallParams, message)
        edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        try:
            agent = AgentId.parse(call.name, "name")
        except SovereignError:
            raise _unknown(call.name) from None
        invocation = exchange.invocation(
            principal,
            agent,
            [{"role": "user", "content": call.arguments.text}],
            longest_s=edge.settings.call_timeout_s,
            conversation_id=call.arguments.conversation_id,
        )
        token = message.meta.get("progressToken")
        name = principal, request.headers.get(SESSION, ""), repr(id_)
        if token is not None and "text/event-stream" in request.headers.get("accept", ""):
            return await self._streamed(request, exchange, invocation, message, token)
        work = asyncio.ensure_future(edge.run(request, exchange, invocation))
        self._calls[name] = work
        try:
            answer = await work
            result = mcp.tool_result(answer, answer.text)
        except NotFoundError:
            edge.record(NotFoundError(f"There is no agent {agent}."), exchange, PATH)
            raise _unknown(call.name) from None
        except SovereignError as error:
            result = mcp.tool_failure(edge.record(error, exchange, PATH))
        finally:
            if self._calls.get(name) is work:
                del self._calls[name]
        return Response(answer_to(id_, result), media_type=MEDIA_TYPE)

    async def _streamed(
        self, request: Request, exchange: Exchange, invocation: Invocation, message: McpMessage, token: int | str
    ) -> Response:
        try:
            stream = await self._edge.open(request, exchange, invocation)
        except NotFoundError as error:
            self._edge.record(error, exchange, PATH)
            raise _unknown(invocation.agent_id) from None
        events = self._events(stream, message, token, exchange)
        return EventStream(events, deadline_at=stream.deadline_at, on_end=stream.aclose)

    async def _events(
        self, stream: InvocationStream, message: McpMessage, token: int | str, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """Yield what comes as progress, and at last the whole answer."""
        pieces: list[str] = []
        try:
            async for piece in stream:
                pieces.append(piece)
                yield _event(mcp.progress(token, len(pieces), piece))
            result = mcp.tool_result(stream.answer, "".join(pieces))
        except SovereignError as error:
            result = mcp.tool_failure(self._edge.record(error, exchange, PATH))
        yield _event(answer_to(message.id or 0, result))

    def _notified(self, request: Request, principal: Principal, message: McpMessage) -> None:
        """Heed what a client tells; what came to another gateway, or has ended, is as if it had not been said."""
        if message.method == "notifications/cancelled":
            name = principal, request.headers.get(SESSION, ""), repr(message.params.get("requestId"))
            if work := self._calls.get(name):
                work.cancel()

    def _check_origin(self, request: Request) -> None:
        """Raise AdmissionDeniedError for a browser's page from elsewhere, whose name may lead here by a changed DNS entry."""
        origin = request.headers.get("origin", "")
        if origin and origin != _origin_of(self._edge.settings.public_url):
            raise AdmissionDeniedError(
                "Pages of other places may not call this path.",
                hint="Programs send no Origin.",
                errors=[FieldError("origin", "is not this server's own")],
            )


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _unknown(name: str) -> JsonRpcError:
    return JsonRpcError(json_rpc.INVALID_PARAMS, f"There is no tool {name}; tools/list says which there are.")


def _event(data: bytes) -> bytes:
    return b"event: message\ndata: " + data + b"\n\n"
