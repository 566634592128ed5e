"""OpenAI's protocol: an agent is a model. Chat completions, whole or as server-sent events, and the list of models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

import orjson
from starlette.requests import Request
from starlette.responses import Response

from actors.invoker import InvocationStream
from cluster.admission.strict_json import parse_strict_json
from cluster.errors import InternalError, SovereignError
from cluster.identity.roles import Scope
from cluster.telemetry.metrics import Stage
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
        invocation = exchange.invocation(
            principal,
            chat.model,
            [m.plain() for m in chat.messages],
            longest_s=edge.settings.call_timeout_s,
            conversation_id=chat.metadata.conversation_id if chat.metadata else None,
            max_output_tokens=chat.max_completion_tokens or chat.max_tokens,
            temperature=chat.temperature,
        )
        if chat.stream:
            stream = await edge.open(request, exchange, invocation)

            async def end() -> None:
                await stream.aclose()
                edge.metrics.stage(Stage.RESPOND, exchange.lap_us())

            events = self._events(stream, chat, invocation.invocation_id, exchange)
            return EventStream(events, deadline_at=stream.deadline_at, on_end=end)
        answer = await edge.run(request, exchange, invocation)
        whole = completion(answer, invocation_id=invocation.invocation_id, agent_id=chat.model, created_s=now_s())
        edge.metrics.stage(Stage.RESPOND, exchange.lap_us())
        return Response(whole, media_type="application/json")

    async def _events(
        self, stream: InvocationStream, chat: ChatRequest, invocation_id: str, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """Yield the stream's events; an error on the way is the last of them."""
        agent_id, created_s = str(chat.model), now_s()
        try:
            delta = {"role": "assistant", "content": ""}
            yield chunk(invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, delta=delta)
            async for piece in stream:
                delta = {"content": piece}
                yield chunk(invocation_id=invocation_id, agent_id=agent_id, created_s=created_s, delta=delta)
            answer = stream.answer
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
