"""What a call, and one call of its model, may cost at most. An agent makes no model call that might pass what is reserved."""

from __future__ import annotations

from cluster.agents.budget import Budget
from cluster.limits.price_card import Price

_MILLION = 1_000_000
# The output that is reserved for a model call when its caller names no bound.
OUTPUT_TOKENS = 4096
# What the results of one step's tools may add to the next prompt, of what is reserved ahead.
TOOL_RESULT_TOKENS = 4096
# What a conversation may have become, of what is reserved ahead: its turns are the agent's to know.
CONVERSATION_TOKENS = 16_384
# Model calls that are reserved ahead. More of them go on as long as what is reserved suffices, and most take far less.
MODEL_CALLS = 4
# What frames a prompt, its messages and tools, beyond the text.
FRAME_TOKENS = 64


def model_call_at_most(price: Price, input_tokens: int, output_tokens: int) -> Budget:
    """Return what one model call may cost."""
    millionths = input_tokens * price.input_at_most + output_tokens * price.output_at_most
    return Budget(input_tokens + output_tokens, -(-millionths // _MILLION))


def call_at_most(
    price: Price,
    *,
    input_tokens: int,
    output_tokens: int | None,
    max_iterations: int,
    model_calls: int = MODEL_CALLS,
    tools: bool,
    conversation: bool,
    cpu_us: int,
) -> Budget:
    """Return what is to be reserved for a call whose prompt has at most `input_tokens`."""
    said = OUTPUT_TOKENS if output_tokens is None else output_tokens
    prompt = input_tokens + FRAME_TOKENS + (CONVERSATION_TOKENS if conversation else 0)
    calls = min(max_iterations, model_calls) if tools else 1
    # Each step's prompt holds what was said and found in the steps before it.
    growth = (said + TOOL_RESULT_TOKENS) * (calls * (calls - 1) // 2)
    whole = model_call_at_most(price, prompt * calls + growth, said * calls)
    beside = (max_iterations * price.tool_call if tools else 0) + cpu_at_most(price, cpu_us)
    return Budget(whole.tokens, whole.micro_usd + beside)


def cpu_time_at_most(deadline_s: float, cpu_milli: int) -> int:
    """Return the CPU time that a call can take until its deadline, in microseconds, on the CPUs that its agent declares."""
    return int(deadline_s * 1_000) * max(1_000, cpu_milli)


def cpu_at_most(price: Price, cpu_us: int) -> int:
    """Return what so much CPU time costs, in micro-dollars."""
    return -(-cpu_us * price.cpu_second // _MILLION)


def output_that_fits(price: Price, left: Budget, bounded: Budget, input_tokens: int, asked: int | None) -> int:
    """Return how many tokens the next answer may have so that the call stays within what is `left`; 0 or less when none.

    `bounded` says in which units there is a bound at all (not 0).
    """
    most = OUTPUT_TOKENS if asked is None else asked
    if bounded.tokens:
        most = min(most, left.tokens - input_tokens)
    if bounded.micro_usd:
        rest = left.micro_usd * _MILLION - input_tokens * price.input_at_most
        if rest < 0:
            return 0
        if price.output_at_most:
            most = min(most, rest // price.output_at_most)
    return most
