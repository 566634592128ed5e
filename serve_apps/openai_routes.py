"""OpenAI's protocol: an agent is a model. Chat completions, whole or as server-sent events, and the list of models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from actors.invoker import InvocationStream
from cluster.admission.strict_json import parse_strict_json
from cluster.errors import InternalError, SovereignError
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.telemetry.metrics import Stage
from serve_apps.chat import ChatRequest
from serve_apps.completions import ChunkWriter, completion, event
from serve_apps.edge import Edge, now_s
from serve_apps.event_stream import EventStream, Last
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
        asked = chat.asked()
        edge.metrics.stage(Stage.PARSE, exchange.lap_us())
        invocation = exchange.invocation(principal, chat.model, longest_s=edge.settings.call_timeout_s, **asked)
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
        """Yield the stream's events, those together that came together; an error on the way is the last of them."""
        chunks = ChunkWriter(invocation_id=invocation_id, agent_id=chat.model, created_s=now_s())
        with_usage = chat.stream_options is not None and chat.stream_options.include_usage
        events = chunks.begin()
        try:
            async for piece in stream:
                events += chunks.text(piece)
                if not stream.ended:
                    yield events
                    events = b""
            yield Last(events + chunks.end(stream.answer, with_usage=with_usage))
        except SovereignError as error:
            told = self._edge.record(error, exchange, "/v1/chat/completions")
            yield events + event({"error": openai_error(told)})
        except Exception:
            yield events + event({"error": openai_error(InternalError("The gateway failed."))})
            raise

    async def models(self, request: Request, exchange: Exchange) -> Response:
        """GET /v1/models: the caller's agents."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        data: list[dict[str, object]] = []
        after = ""
        while True:
            page = await self._edge.governance.call("list", principal.to_json(), after, 1000)
            data += [_model(agent, principal) for agent in page["agents"]]
            after = page["next"]
            if not after or len(data) >= 10_000:
                break
        return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")

    async def model(self, request: Request, exchange: Exchange) -> Response:
        """GET /v1/models/{model}: one of the caller's agents."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        agent = await self._edge.governance.call("get", principal.to_json(), request.path_params["model"])
        return Response(orjson.dumps(_model(agent, principal)), media_type="application/json")


def _model(agent: dict[str, Any], principal: Principal) -> dict[str, object]:
    return {
        "id": agent["agent_id"],
        "object": "model",
        "created": int(datetime.fromisoformat(agent["created_at"]).timestamp()),
        "owned_by": str(principal.tenant),
    }
