"""What quantities come to: by hand for each kind of price, by property for all of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.billing.money import minor_units
from cluster.billing.period import Period
from cluster.billing.rate_card import Meter, RateCard
from cluster.billing.rating import MINIMUM, Key, UnratedUsageError, charge, rate
from tests.unit.billing.cards import card

MARCH = Period.month("2026-03")
CHEF, CLERK = Key("kitchen", "chef", "openai:gpt-4o"), Key("office", "clerk", "openai:gpt-4o-mini")
TIERS = "tiers: [{up_to: 10, price: '5'}, {up_to: 20, price: '3', flat: '1'}, {price: '1'}]"


def rule_of(yaml: str) -> Any:
    (rule,) = card(f"  - {{id: r, {yaml}}}").rules
    return rule


def dollars(cards: RateCard, used: dict[tuple[Key, Meter], int], held: Period = MARCH) -> Decimal:
    return Decimal(sum(line.amount_e12 for line in rate(cards, used, held, MARCH))) / 10**12


@pytest.mark.parametrize(
    ("yaml", "costs"),
    [
        ("kind: per_unit, meter: calls, price: '0.5'", {0: "0", 3: "1.5"}),
        ("kind: per_unit, meter: calls, price: '0.5', per: 1000", {1: "0.0005"}),
        ("kind: per_unit, meter: calls, price: '2', included: 5", {5: "0", 6: "2"}),
        ("kind: per_unit, meter: calls, price: '2', minimum: '3', maximum: '5'", {0: "3", 2: "4", 9: "5"}),
        ("kind: package, meter: calls, price: '7', size: 10", {0: "0", 1: "7", 10: "7", 11: "14"}),
        (f"kind: graduated, meter: calls, {TIERS}", {0: "0", 10: "50", 11: "54", 20: "81", 25: "86"}),
        (f"kind: graduated, meter: calls, per: 10, {TIERS}", {10: "5", 20: "9"}),
        (f"kind: volume, meter: calls, {TIERS}", {0: "0", 10: "50", 11: "34", 20: "61", 25: "25"}),
    ],
)
def test_each_kind_of_price_by_hand(yaml: str, costs: dict[int, str]) -> None:
    """At, before and after the edges."""
    assert {q: charge(rule_of(yaml), q) for q in costs} == {q: Fraction(c) for q, c in costs.items()}


def test_tokens_are_priced_by_model_and_class() -> None:
    """The longest pattern that fits decides, and a class that is cached is not billed as one that is not."""
    matrix = """\
  - id: tokens
    kind: matrix
    prices:
      "openai:*": {tokens_input_uncached: "10", tokens_cache_read: "1", tokens_output: "40"}
      "openai:gpt-4o-mini*": {tokens_input_uncached: "2", tokens_cache_read: "0.2", tokens_output: "8"}
"""
    used = {(CHEF, Meter.INPUT): 1_000_000, (CHEF, Meter.CACHE_READ): 500_000, (CLERK, Meter.OUTPUT): 250_000}
    lines = {(line.key.agent, line.meter): line.amount_e12 for line in rate(card(matrix), used, MARCH, MARCH)}
    assert lines == {
        ("chef", "tokens_input_uncached"): 10 * 10**12,
        ("chef", "tokens_cache_read"): 5 * 10**11,
        ("clerk", "tokens_output"): 2 * 10**12,
    }


def test_a_flat_price_is_by_the_second_that_it_was_held() -> None:
    """Half of the month, half of the price."""
    half = MARCH.within(MARCH.begin + timedelta(seconds=MARCH.seconds // 2), None)
    flat = card("  - {id: base, kind: flat, price: '30'}")
    assert (dollars(flat, {}), dollars(flat, {}, half)) == (Decimal(30), Decimal(15))


def test_discounts_minimum_and_maximum_of_the_whole() -> None:
    """A discount is on its rules; what is missing to the minimum is a line of its own; a maximum cuts all lines alike."""
    rules = (
        "  - {id: a, kind: per_unit, meter: calls, price: '10'}\n  - {id: b, kind: per_unit, meter: tool_calls, price: '10'}\n"
    )
    used = {(CHEF, Meter.CALLS): 1, (CLERK, Meter.TOOL_CALLS): 1}
    assert dollars(card(rules + "discounts: [{id: d, basis_points: 2500, rules: [a]}]"), used) == Decimal("17.5")
    assert dollars(card(rules + "discounts: [{id: d, basis_points: 1000}]"), used) == 18
    (*_, least) = rate(card(rules + "minimum: '25'"), used, MARCH, MARCH)
    assert (least.rule, least.amount_e12) == (MINIMUM, 5 * 10**12)
    most = rate(card(rules + "maximum: '5'"), used, MARCH, MARCH)
    assert [line.amount_e12 for line in most] == [25 * 10**11] * 2


def test_a_minimum_of_a_rule_is_due_without_any_use() -> None:
    """And is nobody's."""
    (line,) = rate(card("  - {id: a, kind: per_unit, meter: calls, price: '1', minimum: '9'}"), {}, MARCH, MARCH)
    assert (line.key.agent, line.quantity, line.amount_e12) == ("", 0, 9 * 10**12)
    assert not rate(card("  - {id: a, kind: per_unit, meter: calls, price: '1'}"), {}, MARCH, MARCH)


def test_threat_75_what_has_no_price_is_billed_as_nothing_else() -> None:
    """Control: rate. A meter without a price, a model without one and a negative quantity are named, all at once."""
    some = card("  - {id: a, kind: per_unit, meter: calls, models: ['openai:gpt-4o'], price: '1'}\nfree: [queue_us]")
    fine = {(CHEF, Meter.CALLS): 2, (CLERK, Meter.QUEUE_TIME): 9, (CLERK, Meter.CPU): 0}
    assert dollars(some, fine) == 2
    for more, named in (
        ({(CLERK, Meter.CALLS): 1}, "calls of the model openai:gpt-4o-mini"),
        ({(CHEF, Meter.CPU): 1}, "cpu_us of the model openai:gpt-4o"),
        ({(CHEF, Meter.TOOL_CALLS): -1}, "-1 tool_calls of chef"),
        ({(CHEF, Meter.CALLS): 2**63}, f"{2**63} calls of chef"),
    ):
        with pytest.raises(UnratedUsageError, match="standard version 1") as refused:
            rate(some, fine | more, MARCH, MARCH)
        assert named in str(refused.value)


PRICES = st.decimals(min_value=0, max_value=1000, places=6)
QUANTITIES = st.integers(0, 10**12)


@st.composite
def rules(draw: st.DrawFn, kinds: tuple[str, ...] = ("per_unit", "graduated", "volume", "package")) -> Any:
    """Return any rule of a meter."""
    kind = draw(st.sampled_from(kinds))
    common = f"kind: {kind}, meter: calls, included: {draw(st.integers(0, 1000))}"
    if kind == "package":
        return rule_of(f"{common}, price: '{draw(PRICES)}', size: {draw(st.integers(1, 10**6))}")
    common += f", per: {draw(st.sampled_from([1, 1000, 1_000_000]))}"
    if kind == "per_unit":
        return rule_of(f"{common}, price: '{draw(PRICES)}'")
    ends = sorted(draw(st.sets(st.integers(1, 10**9), max_size=4)))
    tiers = [f"{{up_to: {end}, price: '{draw(PRICES)}', flat: '{draw(PRICES)}'}}" for end in ends] + [
        f"{{price: '{draw(PRICES)}'}}"
    ]
    return rule_of(f"{common}, tiers: [{', '.join(tiers)}]")


@given(rule=rules(("per_unit", "graduated", "package")), a=QUANTITIES, b=QUANTITIES)
def test_more_never_costs_less(rule: Any, a: int, b: int) -> None:
    """But by volume, where it may: that is what it is for."""
    assume(a <= b)
    assert 0 <= charge(rule, a) <= charge(rule, b)


@given(price=PRICES, included=st.integers(0, 100), quantity=QUANTITIES)
def test_one_tier_is_a_price_per_unit(price: Decimal, included: int, quantity: int) -> None:
    """Whether it is called graduated or volume."""
    tier = f"meter: calls, included: {included}, tiers: [{{price: '{price}'}}]"
    plain = rule_of(f"kind: per_unit, meter: calls, included: {included}, price: '{price}'")
    for kind in ("graduated", "volume"):
        assert charge(rule_of(f"kind: {kind}, {tier}"), quantity) == charge(plain, quantity)


@given(rule=rules(), used=st.lists(QUANTITIES, min_size=1, max_size=12))
def test_lines_are_the_charge_of_the_whole_quantity(rule: Any, used: list[int]) -> None:
    """To the last of twelve places, whoever has how much of it, so that the invoice's total does not depend on its lines."""
    whole = card("  - {id: x, kind: flat, price: '0'}").model_copy(update={"rules": [rule]})
    lines = rate(whole, {(Key("p", f"a{i:02}", "m"), Meter.CALLS): q for i, q in enumerate(used)}, MARCH, MARCH)
    exact = charge(rule, sum(used))
    assert abs(Fraction(sum(line.amount_e12 for line in lines), 10**12) - exact) <= Fraction(1, 2 * 10**12)
    assert minor_units(Fraction(sum(line.amount_e12 for line in lines), 10**12), "USD") == minor_units(
        Fraction(round(exact * 10**12), 10**12), "USD"
    )


def test_threat_76_a_period_is_half_open_and_in_utc() -> None:
    """Control: Period. Its first moment is in it, its end is in the next; leap days and daylight saving change nothing."""
    assert (MARCH.begin in MARCH, MARCH.end in MARCH, MARCH.end in Period.month("2026-04")) == (True, False, True)
    assert [Period.month(m).seconds // 86_400 for m in ("2026-03", "2026-10", "2028-02", "2026-12")] == [31, 31, 29, 31]
    assert (MARCH.begin - timedelta(microseconds=1)) not in MARCH
    vienna = datetime(2026, 3, 29, 3, 0, tzinfo=UTC)
    assert MARCH.within(vienna, None).begin == vienna
    assert MARCH.within(MARCH.end, None).seconds == 0
    local = MARCH.begin.replace(tzinfo=None)
    for begin, end in ((local, MARCH.end), (MARCH.end, MARCH.begin), (MARCH.begin, MARCH.end.replace(microsecond=1))):
        with pytest.raises(ValueError, match=r"period|UTC"):
            Period(begin, end)
