"""OpenAI's chat completions as the platform takes them: a strict request in, a completion or its chunks out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.wire import CallAnswer, Usage
from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import AgentId, Identifier


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of the conversation; only text is taken."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, max_length=64)

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Strict):
    """What a stream carries beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatMetadata(_Strict):
    """The labels of a call that the platform understands."""

    conversation_id: Identifier | None = Field(None, description="Continue this conversation: the agent remembers its turns.")


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions; a field that is not listed is refused by its name, never ignored."""

    model: AgentId = Field(description="The agent's id.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    n: Literal[1] = 1
    user: str | None = Field(None, max_length=256)
    metadata: ChatMetadata | None = None

    @classmethod
    def parse(cls, document: Any) -> ChatRequest:
        """Return the request; raises InvalidRequestError that names each wrong field by its path."""
        try:
            return cls.model_validate(document)
        except ValidationError as e:
            fields = [FieldError(".".join(map(str, x["loc"])) or "body", x["msg"]) for x in e.errors(include_url=False)[:20]]
            raise InvalidRequestError("The chat request is not valid.", errors=fields) from None


def completion(answer: CallAnswer, *, invocation_id: str, agent_id: str, created_s: int) -> bytes:
    """Return the JSON of a whole completion."""
    return orjson.dumps(
        {
            "id": f"chatcmpl-{invocation_id}",
            "object": "chat.completion",
            "created": created_s,
            "model": agent_id,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": answer.finish_reason,
                }
            ],
            "usage": usage_object(answer.usage),
        }
    )


def chunk(
    *,
    invocation_id: str,
    agent_id: str,
    created_s: int,
    delta: dict[str, Any] | None = None,
    finish_reason: str | None = None,
    usage: Usage | None = None,
) -> bytes:
    """Return one server-sent event; without `delta` it is the last one, which carries `usage` and no choice."""
    document: dict[str, Any] = {
        "id": f"chatcmpl-{invocation_id}",
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": agent_id,
        "choices": [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }
    if usage is not None:
        document["usage"] = usage_object(usage)
    return event(document)


def event(document: dict[str, Any]) -> bytes:
    """Return `document` as a server-sent event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.tokens_cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.tokens_reasoning, "audio_tokens": 0},
    }
