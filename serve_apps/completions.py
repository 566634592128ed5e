"""An agent's answer as OpenAI's chat completion: whole, or as the chunks of a stream."""

from __future__ import annotations

from typing import Any

import orjson

from actors.wire import CallAnswer, Usage


def completion(answer: CallAnswer, *, invocation_id: str, agent_id: str, created_s: int) -> bytes:
    """Return the JSON of a whole completion."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message |= {"content": answer.text or None, "tool_calls": _tool_calls(answer)}
    return orjson.dumps(
        {
            "id": f"chatcmpl-{invocation_id}",
            "object": "chat.completion",
            "created": created_s,
            "model": agent_id,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": usage_object(answer.usage),
        }
    )


class ChunkWriter:
    """Writes the chunks of one stream as server-sent events."""

    def __init__(self, *, invocation_id: str, agent_id: str, created_s: int) -> None:
        self._common = {
            "id": f"chatcmpl-{invocation_id}",
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": agent_id,
        }
        # What stands round each piece of text is the same: a stream has many, and each would cost a document.
        before, _, after = self._chunk({"content": 0}).partition(b'{"content":0}')
        self._before, self._after = before + b'{"content":', b"}" + after

    def begin(self) -> bytes:
        """Return the chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, piece: str) -> bytes:
        """Return the chunk of a piece of text."""
        return self._before + orjson.dumps(piece) + self._after

    def end(self, answer: CallAnswer, *, with_usage: bool) -> bytes:
        """Return the chunks after the text: tool calls, the reason, the usage when it was asked for, and the end mark."""
        calls = [{"index": i} | call for i, call in enumerate(_tool_calls(answer))]
        last = self._chunk({"tool_calls": calls}) if calls else b""
        last += self._chunk({}, answer.finish_reason)
        if with_usage:
            last += event(self._common | {"choices": [], "usage": usage_object(answer.usage)})
        return last + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._common | {"choices": [choice]})


def event(document: dict[str, Any]) -> bytes:
    """Return `document` as a server-sent event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _tool_calls(answer: CallAnswer) -> list[dict[str, Any]]:
    return [
        {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
        for c in answer.tool_calls
    ]


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.tokens_cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.tokens_reasoning, "audio_tokens": 0},
    }
