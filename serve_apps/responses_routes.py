"""OpenAI's responses: an agent answers, plain, as a stream or in the background, and goes on from an earlier answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from actors.invoker import InvocationStream
from actors.wire import CallAnswer, Usage
from cluster.admission.strict_json import parse_strict_json
from cluster.errors import InternalError, NotFoundError, SovereignError, from_problem
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import Run, RunStatus
from cluster.telemetry.metrics import Stage
from serve_apps.edge import Edge, now_s
from serve_apps.event_stream import EventStream, Last
from serve_apps.exchange import Exchange
from serve_apps.problems import openai_error
from serve_apps.response_objects import ResponseEvents, ResponseObject, parts_of
from serve_apps.responses import ResponseRequest
from serve_apps.runs import RunRequest

_PATH = "/v1/responses"


class ResponsesRoutes:
    """The handlers under /v1/responses."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def create_response(self, request: Request, exchange: Exchange) -> Response:
        """POST /v1/responses: ask an agent; the answer comes whole, as it is made, or in the background."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        edge.metrics.stage(Stage.AUTHENTICATE, exchange.lap_us())
        asking = ResponseRequest.parse(parse_strict_json(await edge.body(request), max_bytes=edge.settings.max_body_bytes))
        asked = asking.asked()
        exchange.invocation_id = exchange.invocation_id or uuid7()
        asked |= _continued(asking, exchange.invocation_id)
        edge.metrics.stage(Stage.PARSE, exchange.lap_us())
        if asking.background:
            return await self._begin(principal, exchange, asking, asked)
        invocation = exchange.invocation(principal, asking.model, longest_s=edge.settings.call_timeout_s, **asked)
        response = ResponseObject(
            invocation.invocation_id,
            conversation_id=invocation.conversation_id,
            agent_id=asking.model,
            created_s=now_s(),
            echo=asking.echo() | {"background": False},
        )
        if asking.stream:
            stream = await edge.open(request, exchange, invocation)

            async def end() -> None:
                await stream.aclose()
                edge.metrics.stage(Stage.RESPOND, exchange.lap_us())

            return EventStream(self._events(stream, response, exchange), deadline_at=stream.deadline_at, on_end=end)
        answer = await edge.run(request, exchange, invocation)
        whole = _json(response.ended(answer, answer.text))
        edge.metrics.stage(Stage.RESPOND, exchange.lap_us())
        return whole

    async def show_response(self, request: Request, exchange: Exchange) -> Response:
        """GET /v1/responses/{response_id}: one that runs or ran in the background, as it stands."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        return _json(_document(await self._run_of(request, principal)))

    async def cancel_response(self, request: Request, exchange: Exchange) -> Response:
        """POST /v1/responses/{response_id}/cancel: stop one that runs in the background; answers when its work has stopped."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        run = await self._run_of(request, principal)
        return _json(_document(await self._edge.runs.cancel(principal, run.run_id)))

    async def delete_response(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /v1/responses/{response_id}: forget one that ran in the background."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        run = await self._run_of(request, principal)
        await self._edge.runs.delete(principal, run.run_id)
        return _json({"id": request.path_params["response_id"], "object": "response", "deleted": True})

    async def _begin(self, principal: Principal, exchange: Exchange, asking: ResponseRequest, asked: dict[str, Any]) -> Response:
        """Answer with a response that is queued: it is on disk, and goes on without this connection."""
        messages, thread, tools = (asked.pop(name) for name in ("messages", "conversation_id", "client_tools"))
        options = asked | {"client_tools": asdict(tools) if tools else None}
        # A run keeps what was asked for, and takes no agent that is not there.
        await self._edge.governance.call("get", principal.to_json(), str(asking.model))
        run = await self._edge.runs.start(
            principal,
            RunRequest(
                kind="responses",
                agent_id=asking.model,
                messages=messages,
                deadline_s=exchange.deadline_s(self._edge.settings.call_timeout_s),
                thread_id=thread,
                metadata=asking.echo(),
                options={name: value for name, value in options.items() if value not in (None, "")},
                run_id=exchange.invocation_id,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            ),
        )
        return _json(_document(run))

    async def _run_of(self, request: Request, principal: Principal) -> Run:
        """Return the run of the response that the path names; raises NotFoundError."""
        named = request.path_params["response_id"]
        conversation, run_id = parts_of(named)
        try:
            run = await self._edge.runs.get(principal, run_id)
        except NotFoundError:
            run = None
        if run is None or run.kind != "responses" or run.thread_id != conversation:
            raise NotFoundError(f"There is no response {named[:100]!r}.", hint="Those that ran in the background are kept.")
        return run

    async def _events(
        self, stream: InvocationStream, response: ResponseObject, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """Yield the stream's events, those together that came together; an error on the way is the last of them."""
        writer = ResponseEvents(response)
        events = writer.begin()
        try:
            async for piece in stream:
                events += writer.text(piece)
                if not stream.ended:
                    yield events
                    events = b""
            yield Last(events + writer.end(stream.answer))
        except SovereignError as error:
            yield events + writer.failed(openai_error(self._edge.record(error, exchange, _PATH)))
        except Exception:
            yield events + writer.failed(openai_error(InternalError("The gateway failed.")))
            raise


def _continued(asking: ResponseRequest, invocation_id: str) -> dict[str, str | None]:
    """Return the conversation that the response is a turn of, and the answer that it follows."""
    if asking.previous_response_id is not None:
        conversation, after = parts_of(asking.previous_response_id)
        return {"conversation_id": conversation, "after": after}
    if asking.store is False:
        return {"conversation_id": None}
    return {"conversation_id": asking.named_conversation or f"r-{invocation_id}"}


def _document(run: Run) -> dict[str, Any]:
    """Return the response of a run as it stands."""
    response = ResponseObject(
        run.run_id,
        conversation_id=run.thread_id,
        agent_id=run.agent_id,
        created_s=run.created_us // 1_000_000,
        echo=run.metadata | {"background": True},
    )
    match run.status:
        case RunStatus.PENDING:
            return response.document("queued")
        case RunStatus.RUNNING:
            return response.document("in_progress")
        case RunStatus.CANCELLED:
            return response.document("cancelled")
        case RunStatus.ERROR:
            told = openai_error(from_problem(run.error))
            return response.document("failed", error={"code": told["code"], "message": told["message"]})
        case RunStatus.SUCCESS:
            usage, calls = Usage(**run.usage), run.output.get("tool_calls", [])
            return response.ended(CallAnswer("", run.finish_reason, run.model, usage, calls), run.answer)


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
