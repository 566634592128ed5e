"""What travels inside a call frame and its answer: msgpack, versioned, nothing that could run.

call    {"v": 1, "invocation_id", "request_id", "trace_id", "traceparent", "project_id", "parent_invocation_id", "reservation_id",
         "budget_tokens", "budget_micro_usd", "queue_us", "messages", "thread_id", "max_output_tokens", "temperature", "depth"},
         and where they are asked for "model_settings", "client_tools": {"functions", "required", "named", "parallel"},
         "response_schema", "instructions", "after"
chunk   the next piece of the answer's text, UTF-8
result  {"v": 1, "text", "finish_reason", "model", "usage": {…}, "spent": [tokens, micro_usd]}, and "tool_calls" where they
        ended the turn; the text is empty when it was streamed
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from cluster.agents.client_tools import ClientTools
from cluster.errors import InvalidRequestError

VERSION = 1


@dataclass(frozen=True, slots=True)
class CallOrder:
    """One call on its way to an agent."""

    invocation_id: str
    # OpenAI chat messages that were checked at the way in.
    messages: list[dict[str, Any]]
    request_id: str = ""
    trace_id: str = ""
    # Under which span the agent's work goes on; empty without tracing.
    traceparent: str = ""
    project_id: str = "default"
    parent_invocation_id: str = ""
    # What is reserved for it, under which name; 0 is no bound.
    reservation_id: str = ""
    budget_tokens: int = 0
    budget_micro_usd: int = 0
    # Microseconds that the call waited at the way in.
    queue_us: int = 0
    thread_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    # How often this work was handed on from agent to agent; 0 for what a person or a program asked.
    depth: int = 0
    # As cluster/agents/call.py has them.
    model_settings: dict[str, Any] | None = None
    client_tools: ClientTools | None = None
    response_schema: dict[str, Any] | None = None
    instructions: str = ""
    after: str | None = None

    @property
    def recorded_trace(self) -> str:
        """The trace that has this call; empty when none does."""
        return self.trace_id if self.traceparent[-1:] in _RECORDED else ""

    def to_bytes(self) -> bytes:
        """Return the frame's payload."""
        # Not asdict: it copies every message, which costs more than packing them.
        document = {name: getattr(self, name) for name in _ORDER_FIELDS}
        for name in _ASKED_FOR:
            if (value := getattr(self, name)) not in (None, ""):
                document[name] = asdict(value) if isinstance(value, ClientTools) else value
        document["v"] = VERSION
        packed: bytes = msgpack.packb(document)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> CallOrder:
        """Return the order; raises InvalidRequestError when the payload is not one."""
        document = _unpack(data)
        try:
            if "client_tools" in document:
                document["client_tools"] = ClientTools(**document["client_tools"])
            return cls(**document)
        except TypeError:
            raise InvalidRequestError("The call's payload has unknown or missing fields.") from None


# The last digit of a traceparent whose flags, of which it is the first, say that it is recorded.
_RECORDED = frozenset("13579bdf")
# What few calls ask for: it is sent with those alone, which an agent of an earlier release understands.
_ASKED_FOR = ("model_settings", "client_tools", "response_schema", "instructions", "after")
_ORDER_FIELDS = tuple(name for name in CallOrder.__dataclass_fields__ if name not in _ASKED_FOR)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used, as its caller is told; token classes are disjoint."""

    tokens_input_uncached: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    tokens_output: int = 0
    tokens_reasoning: int = 0
    tool_calls: int = 0
    cpu_us: int = 0
    latency_us: int = 0

    @property
    def input_tokens(self) -> int:
        """Every token that went in."""
        return self.tokens_input_uncached + self.tokens_cache_read + self.tokens_cache_write

    @property
    def output_tokens(self) -> int:
        """Every token that came out, thought or said."""
        return self.tokens_output + self.tokens_reasoning


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """What an agent answered; its usage fact is in the journal before this exists."""

    text: str
    finish_reason: str
    model: str
    usage: Usage = field(default_factory=Usage)
    # The calls of the caller's own functions that ended the turn: {"id", "name", "arguments"}.
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    # Of what was reserved for it, sub-calls included: tokens and micro-dollars.
    spent: tuple[int, int] = (0, 0)

    def to_bytes(self) -> bytes:
        """Return the result frame's body; what of its text is no Unicode (half of a surrogate pair) is "?" in it."""
        document = {"v": VERSION} | asdict(self)
        if not self.tool_calls:
            del document["tool_calls"]
        packed: bytes = msgpack.packb(document, unicode_errors="replace")
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> CallAnswer:
        """Return the answer; raises InvalidRequestError when the body is not one."""
        document = _unpack(data)
        try:
            return cls(**(document | {"usage": Usage(**document["usage"]), "spent": tuple(document.get("spent", (0, 0)))}))
        except (TypeError, KeyError):
            raise InvalidRequestError("The agent's answer has unknown or missing fields.") from None


def _unpack(data: bytes) -> dict[str, Any]:
    try:
        document = msgpack.unpackb(data)
    except ValueError as e:
        raise InvalidRequestError(f"The frame's body is not msgpack: {type(e).__name__}.") from None
    if not isinstance(document, dict) or document.pop("v", None) != VERSION:
        raise InvalidRequestError(f"The frame's body is not of version {VERSION}.")
    return document
