"""Prices, windows, buckets and worst cases: whole numbers, and never less than what may come."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.agents.budget import Budget
from cluster.errors import ConfigurationError
from cluster.limits.price_card import Price, Quantities, cost_of, price_of
from cluster.limits.token_bucket import TokenBucket
from cluster.limits.windows import Window, window_at
from cluster.limits.worst_case import model_call_at_most, output_that_fits

counts = st.integers(0, 10**7)
prices = st.builds(Price, counts, counts, counts, counts, counts, counts, counts)


def _us(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1_000_000)  # type: ignore[misc]  # year, month, day …


def test_a_cost_is_rounded_up_once() -> None:
    """Seven classes of a millionth each are one micro-dollar together, not seven."""
    assert cost_of(Price(1, 1, 1, 1, 1, 0, 1), Quantities(1, 1, 1, 1, 1, 0, 1)) == Budget(5, 1)
    assert cost_of(Price(), Quantities(10, 0, 0, 5)) == Budget(15, 0)


def test_the_longest_pattern_holds_and_no_price_is_no_call() -> None:
    """A model that nobody priced is not free: it can't be called."""
    card = {"openai:*": Price(2), "openai:gpt-4o*": Price(3)}
    assert price_of(card, "openai:gpt-4o-mini") == Price(3)
    assert price_of(card, "openai:o9") == Price(2)
    with pytest.raises(ConfigurationError, match="no price"):
        price_of(card, "other:m")


def test_a_window_ends_where_the_next_begins() -> None:
    """The last microsecond of a day and a month is theirs, the next one the following one's."""
    end = _us(2027, 1, 1)
    assert window_at(Window.DAY, end - 1) == ("day-2026-12-31", end)
    assert window_at(Window.MONTH, end - 1) == ("month-2026-12", end)
    assert window_at(Window.DAY, end)[0] == "day-2027-01-01"
    assert window_at(Window.MONTH, end) == ("month-2027-01", _us(2027, 2, 1))


@given(st.integers(1, 100_000), st.lists(st.tuples(st.integers(0, 120_000_000), st.integers(1, 1_000)), max_size=30))
def test_a_bucket_never_gives_more_than_time_brought(per_minute: int, steps: list[tuple[int, int]]) -> None:
    """It begins empty; over any time it gives at most the rate, and it holds at most a minute's."""
    bucket, now_us, given_away = TokenBucket(per_minute, 0), 0, 0
    for pause_us, wanted in steps:
        now_us += pause_us
        given_away += bucket.take(1, wanted, now_us)
        assert given_away * 60_000_000 <= now_us * per_minute
        assert bucket.level <= per_minute


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_what_a_bucket_says_to_wait_is_enough(per_minute: int, wanted: int) -> None:
    """After `wait_us` so many are there, and a microsecond before they are not."""
    wanted = min(wanted, per_minute)
    wait_us = TokenBucket(per_minute, 0).wait_us(wanted, 0)
    assert TokenBucket(per_minute, 0).take(wanted, wanted, wait_us) == wanted
    assert TokenBucket(per_minute, 0).take(wanted, wanted, wait_us - 1) == 0


@given(prices, counts, counts, st.data())
def test_the_worst_case_of_a_model_call_is_one(price: Price, prompt: int, said: int, data: st.DataObject) -> None:
    """However a prompt is cached and an answer thought, it costs no more."""
    cached, written = data.draw(st.integers(0, prompt)), 0
    written = data.draw(st.integers(0, prompt - cached))
    thought = data.draw(st.integers(0, said))
    used = Quantities(prompt - cached - written, cached, written, said - thought, thought)
    cost, most = cost_of(price, used), model_call_at_most(price, prompt, said)
    assert cost.tokens == most.tokens
    assert cost.micro_usd <= most.micro_usd


@given(prices, st.integers(0, 10**6), st.builds(Budget, st.integers(1, 10**9), st.integers(1, 10**12)))
def test_an_answer_that_fits_costs_no_more_than_is_left(price: Price, prompt: int, left: Budget) -> None:
    """What a call has left pays for the prompt and the longest answer that it may ask for."""
    most = output_that_fits(price, left, left, prompt, None)
    if most > 0:
        cost = model_call_at_most(price, prompt, most)
        assert cost.tokens <= left.tokens
        assert cost.micro_usd <= left.micro_usd
