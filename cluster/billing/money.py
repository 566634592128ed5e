"""Amounts of money: decimals on the way, whole minor units at the end, never a float.

Widths are those of the lake's columns: a unit price has 18 places, an unrounded amount 12 (both of 38 digits), a billed
amount is an int64 of minor units.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from cluster.errors import SovereignError

PRICE_PLACES: Final = 18
AMOUNT_PLACES: Final = 12
# Wide enough that nothing is rounded but where it is said.
EXACT: Final = Context(prec=200, traps=[Inexact, InvalidOperation])
_DIGITS: Final = 38
_MOST_MINOR: Final = 2**63 - 1
# Minor units by ISO 4217 (list one, 2026-01-01). A currency that is not here can't be billed in until it is added.
MINOR_UNITS: Final = {
    **dict.fromkeys(("AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "INR", "MXN"), 2),
    **dict.fromkeys(("NOK", "NZD", "PLN", "RON", "SEK", "SGD", "TRY", "USD", "ZAR"), 2),
    **dict.fromkeys(("CLP", "ISK", "JPY", "KRW", "VND"), 0),
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 3),
}


class AmountTooLargeError(SovereignError):
    """An amount does not fit its column; nothing is billed rather than something else."""

    code = "amount_too_large"
    status = 422


def _plain(value: Any) -> Any:
    # YAML reads 0.1 as a float, which is another number.
    if isinstance(value, float):
        raise ValueError("must be in quotes, for a float is not the number that is written")  # noqa: TRY004  # pydantic's way
    return Decimal(value) if isinstance(value, int | str) and not isinstance(value, bool) else value


# A price or amount as a card has it: text or a whole number.
Price = Annotated[
    Decimal,
    BeforeValidator(_plain),
    Field(ge=0, max_digits=_DIGITS, decimal_places=PRICE_PLACES, allow_inf_nan=False, strict=False),
]


def amount(exact: Fraction | Decimal) -> Decimal:
    """Return the amount with 12 places, half to even; raises AmountTooLargeError."""
    scaled = _rounded(Fraction(exact) * 10**AMOUNT_PLACES)
    if abs(scaled) >= 10**_DIGITS:
        raise AmountTooLargeError(f"An amount has more than {_DIGITS - AMOUNT_PLACES} digits before its point.")
    return Decimal(scaled).scaleb(-AMOUNT_PLACES, EXACT)


def minor_units(exact: Fraction | Decimal, currency: str) -> int:
    """Return the amount in the currency's smallest unit, half to even; raises AmountTooLargeError."""
    minor = _rounded(Fraction(exact) * 10 ** MINOR_UNITS[currency])
    if abs(minor) > _MOST_MINOR:
        raise AmountTooLargeError(f"{minor} minor units of {currency} do not fit 64 bits.")
    return minor


def major(minor: int, currency: str) -> str:
    """Return minor units as people write them, such as "12.30"."""
    return format(Decimal(minor).scaleb(-MINOR_UNITS[currency], EXACT), "f")


def allocate(total: int, shares: Sequence[Fraction | Decimal]) -> list[int]:
    """Return whole parts of `total` in proportion to `shares`, the largest remainders first (Hamilton's method).

    Their sum is `total`, each is within one of its exact part, and of equal remainders the earlier share has the unit.
    Raises ValueError for a negative share, or a total that has nobody to go to.
    """
    exact = [Fraction(share) for share in shares]
    whole = sum(exact, Fraction())
    if any(share < 0 for share in exact) or (total and not whole):
        raise ValueError(f"{total} can't be divided in proportion to {len(exact)} shares of {whole} in all")
    if not total:
        return [0] * len(exact)
    parts = [abs(total) * share / whole for share in exact]
    floors = [int(part) for part in parts]
    left = abs(total) - sum(floors)
    first = sorted(range(len(parts)), key=lambda i: (floors[i] - parts[i], i))[:left]
    for i in first:
        floors[i] += 1
    return [part if total > 0 else -part for part in floors]


def _rounded(exact: Fraction) -> int:
    return round(exact)  # Fraction rounds half to even, exactly
