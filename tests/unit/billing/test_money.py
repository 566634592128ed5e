"""Rounding once, dividing without a remainder, and refusing what does not fit."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.billing.money import AmountTooLargeError, allocate, amount, major, minor_units

SHARES = st.lists(st.fractions(min_value=0, max_value=10**15), min_size=1, max_size=30)


@given(total=st.integers(-(2**63), 2**63), shares=SHARES)
def test_parts_are_the_total_and_within_one_of_what_is_exact(total: int, shares: list[Fraction]) -> None:
    """Nothing is lost or made by rounding, for whatever amounts and however many lines."""
    if not sum(shares):
        shares = [*shares, Fraction(1)]
    parts = allocate(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share / sum(shares)) < 1 for part, share in zip(parts, shares, strict=True))


def test_the_largest_remainders_come_first_and_of_equal_ones_the_earlier() -> None:
    """So that the same lines always get the same cents."""
    assert allocate(100, [Fraction(1)] * 3) == [34, 33, 33]
    assert allocate(-100, [Fraction(1)] * 3) == [-34, -33, -33]
    assert allocate(10, [Fraction(16), Fraction(25), Fraction(59)]) == [2, 2, 6]
    assert allocate(0, [Fraction(0)]) == [0]


@pytest.mark.parametrize(("total", "shares"), [(1, []), (1, [Fraction(0)]), (1, [Fraction(2), Fraction(-1)])])
def test_a_total_that_belongs_to_nobody_is_refused(total: int, shares: list[Fraction]) -> None:
    """And so is a negative share."""
    with pytest.raises(ValueError, match="can't be divided"):
        allocate(total, shares)


@pytest.mark.parametrize(
    ("exact", "currency", "minor"), [("0.125", "USD", 12), ("0.135", "EUR", 14), ("2.5", "JPY", 2), ("1.0005", "KWD", 1000)]
)
def test_amounts_are_rounded_half_to_even_in_the_currencys_own_units(exact: str, currency: str, minor: int) -> None:
    """Yen have none, dinars a thousand."""
    assert minor_units(Decimal(exact), currency) == minor
    assert minor_units(-Decimal(exact), currency) == -minor


def test_an_amount_as_people_write_it() -> None:
    """With the places of its currency."""
    assert [major(1230, "USD"), major(-5, "EUR"), major(1230, "JPY"), major(1230, "KWD")] == ["12.30", "-0.05", "1230", "1.230"]


def test_what_does_not_fit_its_column_is_refused() -> None:
    """Rather than cut off: 38 digits, and 64 bits of minor units."""
    assert minor_units(Fraction(2**63 - 1, 100), "USD") == 2**63 - 1
    for beyond in (Fraction(2**63, 100), -Fraction(2**63, 100)):
        with pytest.raises(AmountTooLargeError):
            minor_units(beyond, "USD")
    assert amount(Fraction(1, 3)) == Decimal("0.333333333333")
    with pytest.raises(AmountTooLargeError):
        amount(Fraction(10**26))
