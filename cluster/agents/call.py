"""One call of an agent: what is asked, and the meter that counts what answering it took."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.limits.price_card import Quantities

if TYPE_CHECKING:
    from cluster.limits.call_budget import CallBudget

from cluster.agents.client_tools import ClientTools


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller asks of an agent."""

    invocation_id: str
    # OpenAI chat messages, already checked: {"role": "system"|"user"|"assistant"|"tool", "content": str, …}.
    messages: list[dict[str, Any]]
    # With a thread the conversation is kept in the checkpointer and `messages` holds only what is new.
    thread_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    # More of how the model is to answer, in OpenAI's words: stop, top_p, seed, presence_penalty, frequency_penalty.
    model_settings: dict[str, Any] | None = None
    client_tools: ClientTools | None = None
    # The JSON Schema that the final answer has to match.
    response_schema: dict[str, Any] | None = None
    # For this call alone: a conversation doesn't remember them.
    instructions: str = ""
    # The invocation whose answer has to be the last one of the conversation.
    after: str | None = None
    # Whose work it is, for what the agent hands on: the caller's request and project, and how often it was handed on so far.
    request_id: str = ""
    project_id: str = "default"
    depth: int = 0
    # When its time is up, by the monotonic clock in nanoseconds; 0 without a bound.
    ends_ns: int = 0
    # What it may spend; None without a bound.
    budget: CallBudget | None = None
    reservation_id: str = ""


@dataclass(slots=True)
class CallMeter:
    """What one call has used so far. Token classes are disjoint; their sum is what the provider counted."""

    model: str = ""
    tokens_input_uncached: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    tokens_output: int = 0
    tokens_reasoning: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    # CPU of sandboxed children, in microseconds, from wait4's own accounting.
    child_cpu_us: int = 0
    # Microseconds that tools took, one after the other or at once, and that the call waited for its conversation's turn.
    tools_us: int = field(default=0, compare=False)
    turn_wait_us: int = field(default=0, compare=False)
    finish_reason: str = "stop"
    # The calls of the caller's own functions that ended the turn: {"id", "name", "arguments"}.
    client_calls: list[dict[str, str]] = field(default_factory=list)
    # The provider's usage objects as they came, one a model call.
    provider_usage: list[dict[str, Any]] = field(default_factory=list)

    def quantities(self) -> Quantities:
        """Return what was used so far but for the agent's own CPU, of which the most that it can be is kept back."""
        return Quantities(
            self.tokens_input_uncached,
            self.tokens_cache_read,
            self.tokens_cache_write,
            self.tokens_output,
            self.tokens_reasoning,
            self.tool_calls,
        )


# The call that the running task works for; what the agent hands on belongs to it.
CURRENT_CALL: ContextVar[Call] = ContextVar("sovereign_call")
# The meter of the call that the running task works for; tools and models find it here.
CURRENT_METER: ContextVar[CallMeter] = ContextVar("sovereign_call_meter")
