"""An agent's answer as OpenAI's response: whole, or as the events of a stream."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import orjson

from actors.wire import CallAnswer, Usage
from cluster.errors import NotFoundError
from cluster.identity.ids import Identifier

PREFIX = "resp_"
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


def response_id(invocation_id: str, conversation_id: str | None) -> str:
    """Return the id of an invocation's response, which says what it can be continued from."""
    return f"{PREFIX}{invocation_id}" if conversation_id is None else f"{PREFIX}{conversation_id}.{invocation_id}"


def parts_of(text: str) -> tuple[str, str]:
    """Return the conversation and the invocation of a response's id; raises NotFoundError for one that was not kept."""
    conversation, dot, invocation = text.removeprefix(PREFIX).rpartition(".")
    with suppress(ValueError):
        if dot and text.startswith(PREFIX):
            return Identifier(conversation), Identifier(invocation)
    raise NotFoundError(f"There is no response {text[:100]!r}.", hint="One with store: false is not kept.")


class ResponseObject:
    """One response as it grows."""

    def __init__(
        self, invocation_id: str, *, conversation_id: str | None, agent_id: str, created_s: int, echo: dict[str, Any]
    ) -> None:
        self.id = response_id(invocation_id, conversation_id)
        self.message_id = f"msg_{invocation_id}"
        self._call_id = f"fc_{invocation_id}"
        self._common = {
            "id": self.id,
            "object": "response",
            "created_at": created_s,
            "model": agent_id,
            "conversation": None if conversation_id is None else {"id": conversation_id},
            **echo,
        }

    def document(
        self,
        status: Status,
        *,
        output: list[dict[str, Any]] | None = None,
        usage: Usage | None = None,
        error: dict[str, Any] | None = None,
        finish_reason: str = "",
    ) -> dict[str, Any]:
        """Return the response in `status`; `finish_reason` says what an incomplete one lacks."""
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason)
        return self._common | {
            "status": status,
            "output": output or [],
            "usage": None if usage is None else usage_object(usage),
            "error": error,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
        }

    def ended(self, answer: CallAnswer, text: str) -> dict[str, Any]:
        """Return the response with an agent's whole answer."""
        status: Status = "incomplete" if answer.finish_reason in ("length", "content_filter") else "completed"
        calls = [self.call(i, c) for i, c in enumerate(answer.tool_calls)]
        said = [self.message(text, status)] if text or not calls else []
        return self.document(status, output=said + calls, usage=answer.usage, finish_reason=answer.finish_reason)

    def message(self, text: str | None, status: str) -> dict[str, Any]:
        """Return the item of what the agent said; None for what it has not said yet."""
        content = [] if text is None else [text_part(text)]
        return {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def call(self, index: int, call: dict[str, str], *, began: bool = False) -> dict[str, Any]:
        """Return the item of one call of the client's function."""
        return {
            "id": f"{self._call_id}_{index}",
            "type": "function_call",
            "call_id": call["id"],
            "name": call["name"],
            "arguments": "" if began else call["arguments"],
            "status": "in_progress" if began else "completed",
        }


class ResponseEvents:
    """Writes the events of one streamed response, in order."""

    def __init__(self, response: ResponseObject) -> None:
        self._response = response
        self._number = 0
        self._text: list[str] = []

    def begin(self) -> bytes:
        """Return the events before anything was said."""
        document = self._response.document("in_progress")
        return self._event("response.created", response=document) + self._event("response.in_progress", response=document)

    def text(self, piece: str) -> bytes:
        """Return the events of a piece of text."""
        events = b"" if self._text else self._begin_message()
        self._text.append(piece)
        return events + self._part("response.output_text.delta", delta=piece, logprobs=[])

    def end(self, answer: CallAnswer) -> bytes:
        """Return the events after the text."""
        text = "".join(self._text)
        document = self._response.ended(answer, text)
        events, output = b"", document["output"]
        if output and output[0]["type"] == "message":
            events += b"" if self._text else self._begin_message()
            events += self._part("response.output_text.done", text=text, logprobs=[])
            events += self._part("response.content_part.done", part=text_part(text))
            events += self._event("response.output_item.done", output_index=0, item=output[0])
        first = len(output) - len(answer.tool_calls)
        for index, (call, item) in enumerate(zip(answer.tool_calls, output[first:], strict=True)):
            at = {"output_index": first + index}
            events += self._event("response.output_item.added", **at, item=self._response.call(index, call, began=True))
            at["item_id"] = item["id"]
            events += self._event("response.function_call_arguments.delta", **at, delta=call["arguments"])
            events += self._event("response.function_call_arguments.done", **at, name=call["name"], arguments=call["arguments"])
            events += self._event("response.output_item.done", output_index=first + index, item=item)
        return events + self._event(f"response.{document['status']}", response=document)

    def failed(self, error: dict[str, Any]) -> bytes:
        """Return the last event of a response that failed after it began."""
        told = {"code": error["code"], "message": error["message"]}
        return self._event("response.failed", response=self._response.document("failed", error=told))

    def _begin_message(self) -> bytes:
        added = self._event("response.output_item.added", output_index=0, item=self._response.message(None, "in_progress"))
        return added + self._part("response.content_part.added", part=text_part(""))

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._response.message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(document) + b"\n\n"


def text_part(text: str) -> dict[str, Any]:
    """Return a piece of output."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object of a response."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.tokens_cache_read, "cache_write_tokens": usage.tokens_cache_write},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.tokens_reasoning},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
