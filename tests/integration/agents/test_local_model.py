"""The brain against an OpenAI-compatible endpoint over a real socket: what is sent, what is metered, what a failure says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.tools import tool

from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.models import build_model
from cluster.errors import ModelFailedError

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


class Endpoint:
    """Answers "Paris it is" in whole or in pieces, or with the status that it was told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.silent = False
        self.url = ""
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        asked = json.loads(await reader.readexactly(length))
        self.asked.append(asked)
        if self.silent:
            await reader.read()
            self.gone.set()
        elif self.status != 200:
            body = json.dumps({"error": {"message": "bad key sk-abcdefghijklmnop1234", "type": "invalid"}}).encode()
            writer.write(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (self.status, len(body)) + body)
        else:
            body = self.stream(asked) if asked.get("stream") else self.whole()
            kind = b"text/event-stream" if asked.get("stream") else b"application/json"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body)
        writer.close()

    @staticmethod
    def whole() -> bytes:
        message = {"role": "assistant", "content": "Paris it is"}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": USAGE}).encode()

    @staticmethod
    def stream(asked: dict[str, Any]) -> bytes:
        pieces: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]} for text in ("Paris", " it", " is")
        ]
        pieces.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            pieces.append({"choices": [], "usage": USAGE})
        common = {"id": "1", "object": "chat.completion.chunk", "model": "m"}
        return b"".join(b"data: %s\n\n" % json.dumps(common | p).encode() for p in pieces) + b"data: [DONE]\n\n"


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    server.close()


@tool
async def web_search(query: str) -> str:
    """Search."""
    return query


def brain(endpoint: Endpoint) -> Brain:
    model = build_model("local:m", local_model_url=endpoint.url)
    return Brain(model, [web_search], instructions="Be terse.", max_iterations=3, model_name="local:m")


CALL = Call("i", [{"role": "user", "content": "Capital of France?"}], max_output_tokens=9, temperature=0.5)


async def test_run_and_stream_meter_alike_on_the_wire(endpoint: Endpoint) -> None:
    """The same answer, token classes and reason come of both ways, and the caller's options are sent."""
    one, two = CallMeter(), CallMeter()
    answer = await brain(endpoint).run(CALL, one)
    pieces = [p async for p in brain(endpoint).stream(CALL, two)]
    assert answer == "Paris it is"
    assert pieces == ["Paris", " it", " is"]
    for meter in (one, two):
        classes = (meter.tokens_input_uncached, meter.tokens_cache_read, meter.tokens_output, meter.tokens_reasoning)
        assert classes == (15, 5, 5, 2)
        assert (meter.model_calls, meter.finish_reason, len(meter.provider_usage)) == (1, "length", 1)
    for asked in endpoint.asked:
        assert [m["role"] for m in asked["messages"]] == ["system", "user"]
        assert asked["temperature"] == 0.5
        assert 9 in (asked.get("max_tokens"), asked.get("max_completion_tokens"))
        assert asked["tools"][0]["function"]["name"] == "web_search"


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_providers_error_is_told_once_without_its_secrets(endpoint: Endpoint, status: int) -> None:
    """No retries: the endpoint is asked once, and its words come back without the key in them."""
    endpoint.status = status
    with pytest.raises(ModelFailedError, match=r"local:m failed.*bad key \[redacted\]"):
        await brain(endpoint).run(CALL, CallMeter())
    assert len(endpoint.asked) == 1


async def test_cancelling_hangs_up_on_the_model(endpoint: Endpoint) -> None:
    """A cancelled call closes the connection, so that the model stops working."""
    endpoint.silent = True
    task = asyncio.create_task(brain(endpoint).run(CALL, CallMeter()))
    while not endpoint.asked:  # noqa: ASYNC110  # a request to arrive
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await endpoint.gone.wait()
