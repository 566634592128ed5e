"""What a model call that was stopped is charged: what the provider reported, and an estimate of the rest."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolCall
from langchain_core.runnables import RunnableLambda

from cluster.agents.call import CURRENT_METER, CallMeter
from cluster.agents.governed_model import GovernedCall
from cluster.agents.token_usage import charge_interrupted, estimated_tokens

ASKED = [SystemMessage("You are terse."), HumanMessage("w" * 400)]
ASKED_TOKENS = (4 + 3) + (100 + 3)


def usage(sent: int, said: int, **details: Any) -> dict[str, Any]:
    return {"input_tokens": sent, "output_tokens": said, "total_tokens": sent + said, **details}


def heard(text: str, **more: Any) -> AIMessage:
    return AIMessage(text, **more)


def interrupted(received: AIMessage | None = None, tools: list[dict[str, Any]] | None = None) -> CallMeter:
    meter = CallMeter()
    charge_interrupted(meter, ASKED, tools or [], received)
    return meter


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("字字字字", 3), ("\ud83d", 1)])
def test_four_bytes_are_a_token(text: str, tokens: int) -> None:
    """The estimate goes by bytes of UTF-8, so that scripts that take more tokens count more; half a pair is no error."""
    assert estimated_tokens(text) == tokens


def test_without_a_report_both_ways_are_estimated() -> None:
    """The prompt, and what was heard, are charged and noted as estimates."""
    meter = interrupted(heard("12345678"))
    assert (meter.tokens_input_uncached, meter.tokens_output) == (ASKED_TOKENS, 2)
    assert meter.provider_usage == [{"interrupted": True, "estimated_input_tokens": ASKED_TOKENS, "estimated_output_tokens": 2}]


def test_schemas_and_tool_calls_count() -> None:
    """The tools' schemas are part of the prompt, and a tool call that the model began is part of what it said."""
    schema = {"type": "function", "function": {"name": "data_analysis", "description": "d" * 400}}
    call = ToolCall(name="data_analysis", args={"sql": "s" * 400}, id="1")
    meter = interrupted(heard("", tool_calls=[call]), [schema])
    assert meter.tokens_input_uncached == ASKED_TOKENS + estimated_tokens(json.dumps(schema))
    assert 100 <= meter.tokens_output <= 120


def test_what_was_reported_is_not_estimated() -> None:
    """A report that came with the first chunk gives the prompt by its classes; of the output only the rest is estimated."""
    report = usage(90, 1, input_token_details={"cache_read": 60})
    meter = interrupted(heard("w" * 40, usage_metadata=report))
    assert (meter.tokens_input_uncached, meter.tokens_cache_read, meter.tokens_output) == (30, 60, 10)
    assert meter.provider_usage == [
        {"interrupted": True, "estimated_input_tokens": 0, "estimated_output_tokens": 9, "reported": report}
    ]


def test_a_report_of_output_alone_leaves_the_prompt_to_the_estimate() -> None:
    """A chunk that says nothing of the prompt does not make it free."""
    meter = interrupted(heard("w", usage_metadata=usage(0, 7)))
    assert (meter.tokens_input_uncached, meter.tokens_output) == (ASKED_TOKENS, 7)


def test_a_whole_answer_is_charged_as_one() -> None:
    """When the end and its report had come, and only its reading was stopped, nothing is estimated."""
    whole = heard("w" * 400, usage_metadata=usage(90, 5), response_metadata={"finish_reason": "stop"})
    meter = interrupted(whole)
    assert (meter.tokens_input_uncached, meter.tokens_output) == (90, 5)
    assert meter.provider_usage == [usage(90, 5)]


@pytest.mark.parametrize("tools", [[], [{"name": "data_analysis", "description": "d" * 400}]])
async def test_a_stopped_call_counts_the_tools_it_was_bound_with(tools: list[dict[str, Any]]) -> None:
    """The schemas that the governed call adds to each request are in the estimate of a call that was stopped."""

    async def stopped(_: Any, **__: Any) -> AIMessageChunk:
        raise asyncio.CancelledError

    meter = CallMeter()
    token = CURRENT_METER.set(meter)
    try:
        with pytest.raises(asyncio.CancelledError):
            await GovernedCall(RunnableLambda(stopped), {"tools": tools} if tools else {}, 1, "m", ()).ainvoke(ASKED)
    finally:
        CURRENT_METER.reset(token)
    assert meter.tokens_input_uncached == ASKED_TOKENS + sum(estimated_tokens(json.dumps(t)) for t in tools)
