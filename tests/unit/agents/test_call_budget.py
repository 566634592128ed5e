"""A call spends no more than was reserved for it: the model is not called when its worst case does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.agents.brain import Brain
from cluster.agents.budget import Budget
from cluster.agents.call import Call, CallMeter
from cluster.agents.models import build_model
from cluster.limits.call_budget import CallBudget, CallBudgetExceededError
from cluster.limits.price_card import Price, Quantities, cost_of
from tests.unit.agents.test_brain import data_analysis

PRICE = Price(input_uncached=1_000_000, output=2_000_000, tool_call=50, cpu_second=1)


def _brain() -> Brain:
    model = "scripted:steps"
    return Brain(build_model(model), [data_analysis], instructions="Be terse.", max_iterations=10, model_name=model)


def _call(script: list[dict[str, Any]] | str, reserved: Budget, price: Price = PRICE, **options: Any) -> Call:
    text = script if isinstance(script, str) else json.dumps({"script": script})
    return Call(
        invocation_id="i1",
        messages=[{"role": "user", "content": text}],
        budget=CallBudget(price, reserved, cpu_us=1_000_000),
        **options,
    )


async def test_no_model_call_is_made_that_might_pass_the_reservation() -> None:
    """A prompt that alone takes what is reserved never reaches the model."""
    meter = CallMeter()
    with pytest.raises(CallBudgetExceededError, match="left of the 60 tokens"):
        await _brain().run(_call("word " * 20, Budget(60, 0)), meter)
    assert (meter.model_calls, meter.quantities()) == (0, Quantities())


async def test_an_answer_is_no_longer_than_what_is_left_pays_for() -> None:
    """The model is asked for as many tokens as fit, also when the caller asks for more."""
    reserved, meter = Budget(12_000, 0), CallMeter()
    text = await _brain().run(_call([{"say": "w " * 5_000}], reserved, max_output_tokens=5_000), meter)
    assert meter.finish_reason == "length"
    assert len(text.split()) < 2_000
    assert cost_of(PRICE, meter.quantities()).tokens <= reserved.tokens


@pytest.mark.parametrize("reserved", [Budget(900, 0), Budget(0, 1_200), Budget(1_000, 1_500)])
async def test_a_loop_of_tools_ends_within_the_reservation(reserved: Budget) -> None:
    """Tools and the growing prompt count; the call ends before the step that might be too much."""
    meter = CallMeter()
    script = [{"loop_tools": {"name": "data_analysis", "args": {"sql": "select 1"}}}]
    with pytest.raises(CallBudgetExceededError):
        await _brain().run(_call(script, reserved), meter)
    spent = cost_of(PRICE, meter.quantities())
    assert meter.model_calls >= 1
    assert not reserved.tokens or spent.tokens <= reserved.tokens
    assert not reserved.micro_usd or spent.micro_usd <= reserved.micro_usd


async def test_a_tool_that_can_not_be_paid_is_not_run() -> None:
    """What is left is less than a tool call costs."""
    meter = CallMeter()
    price = Price(output=1, tool_call=1_000)
    script = [{"call_tool": {"name": "data_analysis", "args": {"sql": "x"}}}, {"say": "never"}]
    with pytest.raises(CallBudgetExceededError, match="tool call costs 1000"):
        await _brain().run(_call(script, Budget(0, 900), price), meter)
    assert meter.tool_calls == 0


def test_sub_calls_draw_on_the_same_reservation() -> None:
    """What is lent is not there for anybody else until it comes back; what nobody accounts for is spent."""
    budget = CallBudget(Price(), Budget(100, 0), cpu_us=0)
    first = budget.lend(Quantities(20))
    second = budget.lend(Quantities(20))
    assert (first, second) == (Budget(40, 0), Budget(20, 0))
    assert budget.spent(Quantities(20)).tokens == 80
    budget.repaid(first, Budget(5, 0))
    budget.repaid(second, None)
    assert budget.spent(Quantities(20)).tokens == 20 + 5 + 20
    with pytest.raises(CallBudgetExceededError):
        budget.lend(Quantities(75))
