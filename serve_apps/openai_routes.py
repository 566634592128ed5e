"""OpenAI's protocol: an agent is a model. Chat completions, whole or as server-sent events, and the list of models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime

import orjson
from starlette.requests import Request
from starlette.responses import Response

from actors.directory import AgentStream
from actors.wire import CallAnswer, CallOrder
from cluster.admission.strict_json import parse_strict_json
from cluster.errors import CancelledCallError, InternalError, SovereignError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.telemetry.metrics import Stage
from cluster.telemetry.tracing import traceparent
from serve_apps.chat import ChatRequest, chunk, completion, event
from serve_apps.edge import Edge, now_s
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.problems import openai_error


class OpenAIRoutes:
    """The handlers under /v1."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def chat_completions(self, request: Request, exchange: Exchange) -> Response:
        """POST /v1/chat/completions: ask an agent; the answer comes whole, or with `stream` as it is made."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        edge.metrics.stage(Stage.AUTHENTICATE, exchange.lap_us())
        body = await edge.body(request)
        chat = ChatRequest.parse(parse_strict_json(body, max_bytes=edge.settings.max_body_bytes))
        edge.metrics.stage(Stage.PARSE, exchange.lap_us())
        order = CallOrder(
            invocation_id=uuid7(),
            messages=[m.plain() for m in chat.messages],
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            traceparent=traceparent(),
            project_id=str(principal.project),
            queue_us=exchange.elapsed_us,
            thread_id=chat.metadata.conversation_id if chat.metadata else None,
            max_output_tokens=chat.max_completion_tokens or chat.max_tokens,
            temperature=chat.temperature,
        )
        deadline_s = exchange.deadline_s(edge.settings.call_timeout_s)
        edge.enter_call()
        streaming = False
        try:
            if chat.stream:
                response = await self._stream(request, principal, chat, order, exchange, deadline_s=deadline_s)
                streaming = True
                return response
            return await self._whole(request, principal, chat, order, exchange, deadline_s=deadline_s)
        finally:
            if not streaming:
                edge.leave_call()

    async def _whole(
        self,
        request: Request,
        principal: Principal,
        chat: ChatRequest,
        order: CallOrder,
        exchange: Exchange,
        *,
        deadline_s: float,
    ) -> Response:
        edge = self._edge
        call = edge.directory.call(principal, chat.model, order.to_bytes(), deadline_s=deadline_s, conversation=order.thread_id)
        try:
            answer = CallAnswer.from_bytes(await edge.until_disconnect(request, call))
        except asyncio.CancelledError:
            raise CancelledCallError("The client went away; the agent's work was stopped.") from None
        edge.metrics.stage(Stage.CHANNEL, exchange.lap_us())
        body = completion(answer, invocation_id=order.invocation_id, agent_id=chat.model, created_s=now_s())
        edge.metrics.stage(Stage.RESPOND, exchange.lap_us())
        return Response(body, media_type="application/json")

    async def _stream(
        self,
        request: Request,
        principal: Principal,
        chat: ChatRequest,
        order: CallOrder,
        exchange: Exchange,
        *,
        deadline_s: float,
    ) -> Response:
        edge = self._edge
        opening = asyncio.ensure_future(
            edge.directory.stream(principal, chat.model, order.to_bytes(), deadline_s=deadline_s, conversation=order.thread_id)
        )
        try:
            stream = await edge.until_disconnect(request, opening)
        except asyncio.CancelledError:
            # It may have opened in the very moment in which the client left.
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await opening.result().aclose()
            raise CancelledCallError("The client went away; the agent's work was stopped.") from None
        edge.metrics.stage(Stage.CHANNEL, exchange.lap_us())

        async def end() -> None:
            await stream.aclose()
            edge.metrics.stage(Stage.RESPOND, exchange.lap_us())
            edge.leave_call()

        return EventStream(self._events(stream, chat, order, exchange), deadline_at=stream.deadline_at, on_end=end)

    async def _events(
        self, stream: AgentStream, chat: ChatRequest, order: CallOrder, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """Yield the stream's events; an error on the way is the last of them."""
        invocation_id, agent_id, created_s = order.invocation_id, str(chat.model), now_s()
        try:
            delta = {"role": "assistant", "content": ""}
            yield chunk(invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, delta=delta)
            async for piece in stream:
                delta = {"content": piece.decode("utf-8", "replace")}
                yield chunk(invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, delta=delta)
            answer = CallAnswer.from_bytes(stream.result)
            last = chunk(
                invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, delta={}, finish_reason=answer.finish_reason
            )
            if chat.stream_options is not None and chat.stream_options.include_usage:
                last += chunk(invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, usage=answer.usage)
            yield last + b"data: [DONE]\n\n"
        except SovereignError as error:
            told = self._edge.record(error, exchange, "/v1/chat/completions")
            yield event({"error": openai_error(told)})
        except Exception:
            yield event({"error": openai_error(InternalError("The gateway failed."))})
            raise

    async def models(self, request: Request, exchange: Exchange) -> Response:
        """GET /v1/models: the caller's agents."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        data: list[dict[str, object]] = []
        after = ""
        while True:
            page = await self._edge.governance.call("list", principal.to_json(), after, 1000)
            for agent in page["agents"]:
                data.append(
                    {
                        "id": agent["agent_id"],
                        "object": "model",
                        "created": int(datetime.fromisoformat(agent["created_at"]).timestamp()),
                        "owned_by": str(principal.tenant),
                    }
                )
            after = page["next"]
            if not after or len(data) >= 10_000:
                break
        return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")
