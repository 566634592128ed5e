"""Which cards are taken, which are refused and why, and which version holds when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cluster.billing.rate_card import FORMAT, Meter, RateCard, card_at, covers, read_card
from cluster.errors import ConfigurationError
from cluster.settings import PROJECT_ROOT
from tests.unit.billing.cards import HEAD, card

CALLS = "  - {id: a, kind: per_unit, meter: calls, price: '1'}\n"


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("  - {id: a, kind: per_unit, meter: calls, price: 0.1}", "in quotes"),
        ("  - {id: a, kind: per_unit, meter: calls, price: '-1'}", "greater than or equal"),
        ("  - {id: a, kind: per_unit, meter: calls, price: 'NaN'}", "finite"),
        ("  - {id: a, kind: per_unit, meter: calls, price: '0.1234567890123456789'}", "18 decimal"),
        ("  - {id: a, kind: per_unit, meter: sighs, price: '1'}", "meter"),
        ("  - {id: a, kind: monthly, price: '1'}", "kind"),
        ("  - {id: A, kind: flat, price: '1'}", "id"),
        ("  - {id: a, kind: per_unit, meter: calls, price: '1', minimum: '2', maximum: '1'}", "minimum is above"),
        ("  - {id: a, kind: volume, meter: calls, tiers: [{up_to: 1, price: '1'}]}", "last tier"),
        ("  - {id: a, kind: volume, meter: calls, tiers: [{price: '1'}, {price: '1'}]}", "must rise"),
        (
            "  - {id: a, kind: graduated, meter: calls, tiers: [{up_to: 2, price: '1'}, {up_to: 2, price: '1'}, {price: '1'}]}",
            "must rise",
        ),
        (CALLS + CALLS, "two rules are called a"),
        (CALLS + "  - {id: b, kind: package, meter: calls, price: '1', size: 2}", "has two prices"),
        (CALLS + "free: [calls]", "has a price and is free"),
        (CALLS + "discounts: [{id: d, basis_points: 1, rules: [z]}]", "z, which is no rule"),
        (CALLS + "minimum: '2'\nmaximum: '1'", "minimum is above"),
        (CALLS + "effective_until: 2026-01-01T00:00:00Z", "must be after"),
        (CALLS + "effective_until: 2026-02-01T00:00:00+01:00", "whole second of UTC"),
        (CALLS + "prices: 1", "prices"),
        (CALLS + "card: again", "stands twice"),
        ("  - {", "no YAML"),
    ],
)
def test_a_card_that_is_wrong_is_refused_by_its_place(rules: str, named: str) -> None:
    """Before anything is billed by it."""
    with pytest.raises(ConfigurationError, match=named):
        card(rules)


def test_a_currency_without_minor_units_is_refused() -> None:
    """An amount in it could not be rounded."""
    with pytest.raises(ConfigurationError, match="XYZ has no minor units"):
        card(CALLS, HEAD.replace("USD", "XYZ"))
    assert card(CALLS).format == FORMAT


def test_the_longest_pattern_that_fits_has_the_price() -> None:
    """And free is free."""
    both = card(
        "  - {id: all, kind: per_unit, meter: calls, price: '1'}\n"
        "  - {id: mini, kind: per_unit, meter: calls, models: ['*mini*'], price: '1'}\nfree: [queue_us]"
    )
    rules = [both.rule_of(Meter.CALLS, model) for model in ("openai:gpt-4o", "openai:gpt-4o-mini")]
    assert [rule.id for rule in rules if rule] == ["all", "mini"]
    assert both.rule_of(Meter.QUEUE_TIME, "x") is None


def test_a_digest_is_of_what_the_card_says() -> None:
    """Not of how it is written, and of every price."""
    again = card("  - price: '1'\n    meter: calls\n    kind: per_unit\n    id: a\n")
    assert card(CALLS).digest == again.digest
    assert card(CALLS.replace("'1'", "'1.01'")).digest != again.digest


def version(number: int, begin: str, until: str = "") -> RateCard:
    head = HEAD.replace("version: 1", f"version: {number}").replace("2026-01-01T00:00:00Z", f"{begin}T00:00:00Z")
    return read_card(head + (f"effective_until: {until}T00:00:00Z\n" if until else "") + f"rules:\n{CALLS}")


def test_threat_76_the_version_that_holds_at_a_moment() -> None:
    """Control: card_at. The first moment of a version is its own, its last is the next one's."""
    cards = [version(2, "2026-02-01"), version(1, "2026-01-01", "2026-02-01")]
    at = {
        day: card_at(cards, "standard", datetime(2026, *day, tzinfo=UTC)).version for day in ((1, 1), (1, 31), (2, 1), (12, 31))
    }
    assert list(at.values()) == [1, 1, 2, 2]
    with pytest.raises(ConfigurationError, match="no version"):
        card_at(cards, "standard", datetime(2025, 12, 31, tzinfo=UTC))
    with pytest.raises(ConfigurationError, match="no version"):
        card_at(cards[1:], "standard", datetime(2026, 2, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (version(2, "2026-02-02"), "leave a gap"),
        (version(2, "2026-01-31"), "overlap"),
        (version(1, "2026-02-01"), "version 1 after 1"),
    ],
)
def test_versions_follow_each_other(second: RateCard, why: str) -> None:
    """Without a gap in which nothing has a price, or an hour that has two."""
    with pytest.raises(ConfigurationError, match=why):
        card_at([version(1, "2026-01-01", "2026-02-01"), second], "standard", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigurationError, match="overlap"):
        card_at([version(1, "2026-01-01"), version(2, "2026-02-01")], "standard", datetime(2026, 1, 1, tzinfo=UTC))


def test_the_card_of_the_documentation_is_taken() -> None:
    """Every kind of rule is in it."""
    text = (PROJECT_ROOT / "docs" / "rate-cards.md").read_text().split("```yaml\n")[1].split("```")[0]
    documented = read_card(text)
    assert {rule.kind for rule in documented.rules} == {"flat", "matrix", "per_unit", "graduated", "volume", "package"}
    assert set(Meter) == {meter for rule in documented.rules for meter, _ in covers(rule)} | set(documented.free)
