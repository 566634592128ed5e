"""What a Ray user would write: a gateway replica that forwards to named actors, with none of the platform's code."""

import gc
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from langchain.agents import create_agent
from ray import serve

from cluster.agents.scripted_model import ScriptedModel

app = FastAPI()


def as_python_starts() -> None:
    """Put the garbage collector back to Python's own settings: the worker came out of the platform's warm pool."""
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)


class BareAgent:
    """The same agent graph in a plain async actor."""

    def __init__(self) -> None:
        as_python_starts()
        self._graph = create_agent(ScriptedModel(script="steps"), [])

    async def invoke(self, messages: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
        state = await self._graph.ainvoke({"messages": [*messages]})
        last = state["messages"][-1]
        return str(last.content), dict(last.usage_metadata or {})

    async def stream(self, messages: list[dict[str, Any]]) -> AsyncIterator[str]:
        """Yield the answer as the model says it."""
        steps: Any = self._graph.astream({"messages": [*messages]}, stream_mode="messages")
        async for message, _ in steps:
            if message.content:
                yield str(message.content)


@serve.deployment(name="bare", num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class BareGateway:
    """One pinned replica with cached handles."""

    def __init__(self) -> None:
        as_python_starts()
        self._handles: dict[str, Any] = {}

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Any:
        body = await request.json()
        name = body["model"]
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = ray.get_actor(name, namespace="bare")
        if body.get("stream"):
            return StreamingResponse(self._events(handle, body), media_type="text/event-stream")
        text, usage = await handle.invoke.remote(body["messages"])
        return {
            "id": f"chatcmpl-{uuid.uuid4()}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": usage.get("input_tokens", 0),
                "completion_tokens": usage.get("output_tokens", 0),
                "total_tokens": usage.get("total_tokens", 0),
            },
        }

    async def _events(self, handle: Any, body: dict[str, Any]) -> AsyncIterator[str]:
        id_, created = f"chatcmpl-{uuid.uuid4()}", int(time.time())

        def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
            chunk = {
                "id": id_,
                "object": "chat.completion.chunk",
                "created": created,
                "model": body["model"],
                "choices": [choice],
            }
            return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"

        yield event({"role": "assistant", "content": ""})
        async for piece in handle.stream.options(num_returns="streaming").remote(body["messages"]):
            yield event({"content": await piece})
        yield event({}, "stop") + "data: [DONE]\n\n"


def start_bare_agent(name: str) -> None:
    """Create one agent as a detached named actor."""
    options = {"name": name, "namespace": "bare", "lifetime": "detached", "num_cpus": 0, "max_concurrency": 1000}
    actor: Any = ray.remote(BareAgent).options(**options).remote()
    ray.get(actor.invoke.remote([{"role": "user", "content": json.dumps({"script": []})}]))
