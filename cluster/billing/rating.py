"""What quantities come to under a rate card: exact until each rule's total, and divided among lines without a remainder.

Every rule is a function of the quantity of the whole period, so that it does not matter how usage was cut into events, nor
in which order they came; what came late costs the difference between two quantities.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Final

from cluster.billing.money import AMOUNT_PLACES, EXACT, allocate, amount
from cluster.billing.period import Period
from cluster.billing.rate_card import Flat, Graduated, Matrix, Meter, Package, PerUnit, RateCard, Rule, Volume
from cluster.errors import SovereignError

_MOST: Final = 2**63 - 1
# The line of what is missing to a card's minimum; a rule can't be called so.
MINIMUM: Final = "(minimum)"


class UnratedUsageError(SovereignError):
    """Usage that the card neither prices nor names as free, or that is no quantity: it is billed as nothing else."""

    code = "usage_without_price"
    status = 409


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Whose usage it is, and of which model."""

    project: str
    agent: str
    model: str


@dataclass(frozen=True, slots=True)
class RatedLine:
    """What one key's quantity of one meter came to: `amount_e12` is exact, in units of 10^-12 of the currency."""

    rule: str
    # Empty for a flat price, and for what the minimum of the whole invoice adds.
    meter: str
    key: Key
    quantity: int
    amount_e12: int


def charge(rule: PerUnit | Graduated | Volume | Package, quantity: int) -> Fraction:
    """Return what `quantity` units in a period come to, before discounts.

    Graduated: sum over tiers of the units in each at its price. Volume: all units at the price of the tier that is reached.
    Tiers count from after the included units.
    """
    paid = max(0, quantity - rule.included)
    if isinstance(rule, PerUnit):
        cost = Fraction(rule.price) * paid / rule.per
    elif isinstance(rule, Package):
        cost = Fraction(rule.price) * -(-paid // rule.size)
    elif isinstance(rule, Graduated):
        cost, begin = Fraction(), 0
        for tier in rule.tiers:
            end = paid if tier.up_to is None else min(paid, tier.up_to)
            if end > begin:
                cost += Fraction(tier.flat) + Fraction(tier.price) * (end - begin) / rule.per
                begin = end
    else:
        tier = next(t for t in rule.tiers if t.up_to is None or paid <= t.up_to)
        cost = Fraction(tier.flat) + Fraction(tier.price) * paid / rule.per if paid else Fraction()
    if rule.minimum is not None:
        cost = max(cost, Fraction(rule.minimum))
    return cost if rule.maximum is None else min(cost, Fraction(rule.maximum))


def rate(card: RateCard, used: Mapping[tuple[Key, Meter], int], held: Period, period: Period) -> list[RatedLine]:
    """Return the lines of a tenant's usage in `period`, in a fixed order; `held` is when in it the tenant had the card.

    Their sum is the invoice's total before tax and before it is rounded. Raises UnratedUsageError, which names every meter
    and model without a price and every quantity that is none, and AmountTooLargeError.
    """
    by_rule: dict[str, dict[tuple[Key, Meter], int]] = defaultdict(dict)
    rules = {rule.id: rule for rule in card.rules}
    wrong = []
    for (key, meter), quantity in sorted(used.items()):
        if not 0 <= quantity <= _MOST:
            wrong.append(f"{quantity} {meter} of {key.agent} ({key.model})")
        elif quantity and meter not in card.free:
            rule = card.rule_of(meter, key.model)
            if rule is None:
                wrong.append(f"{meter} of the model {key.model}")
            else:
                by_rule[rule.id][key, meter] = quantity
    if wrong:
        raise UnratedUsageError(
            f"The rate card {card.card} version {card.version} can't price: {'; '.join(sorted(set(wrong))[:20])}.",
            hint="Add a price, or name the meter under free, in a new version of the card.",
        )
    share = Fraction(held.seconds, period.seconds)
    return _bounded(card, [line for id_, rule in rules.items() for line in _lines(card, rule, by_rule[id_], share)], share)


def _lines(card: RateCard, rule: Rule, used: Mapping[tuple[Key, Meter], int], share: Fraction) -> Iterable[RatedLine]:
    if isinstance(rule, Flat):
        yield RatedLine(rule.id, "", _NOBODY, 1, _e12(_less(card, rule.id, Fraction(rule.price) * share)))
        return
    if isinstance(rule, Matrix):
        cells: dict[tuple[Meter, str], dict[tuple[Key, Meter], int]] = defaultdict(dict)
        for (key, meter), quantity in used.items():
            cells[meter, _pattern(rule, meter, key.model)][key, meter] = quantity
        for (meter, pattern), part in cells.items():
            price = Fraction(rule.prices[pattern][meter])
            yield from _divided(rule.id, part, _e12(_less(card, rule.id, price * sum(part.values()) / rule.per)))
        return
    cost = _e12(_less(card, rule.id, charge(rule, sum(used.values()))))
    if used:
        yield from _divided(rule.id, used, cost)
    elif cost:  # a minimum is due without any use
        yield RatedLine(rule.id, rule.meter, _NOBODY, 0, cost)


def _divided(rule: str, used: Mapping[tuple[Key, Meter], int], cost: int) -> Iterable[RatedLine]:
    """Yield what the whole quantity came to, by how much each has of it."""
    parts = allocate(cost, [Fraction(quantity) for quantity in used.values()])
    for ((key, meter), quantity), part in zip(used.items(), parts, strict=True):
        yield RatedLine(rule, meter, key, quantity, part)


def _bounded(card: RateCard, lines: list[RatedLine], share: Fraction) -> list[RatedLine]:
    """Add what is missing to the card's minimum, or cut all lines alike to its maximum; each for the time it was held."""
    total = sum(line.amount_e12 for line in lines)
    if card.minimum is not None and (least := _e12(Fraction(card.minimum) * share)) > total:
        return [*lines, RatedLine(MINIMUM, "", _NOBODY, 1, least - total)]
    if card.maximum is not None and (most := _e12(Fraction(card.maximum) * share)) < total:
        parts = allocate(most, [Fraction(line.amount_e12) for line in lines])
        return [replace(line, amount_e12=part) for line, part in zip(lines, parts, strict=True)]
    return lines


def _pattern(rule: Matrix, meter: Meter, model: str) -> str:
    found = [(len(p), p) for p, prices in rule.prices.items() if meter in prices and fnmatchcase(model, p)]
    return max(found)[1]


def _less(card: RateCard, rule: str, cost: Fraction) -> Fraction:
    for discount in card.discounts:
        if not discount.rules or rule in discount.rules:
            cost *= Fraction(10_000 - discount.basis_points, 10_000)
    return cost


def _e12(cost: Fraction) -> int:
    return int(amount(cost).scaleb(AMOUNT_PLACES, EXACT))


_NOBODY: Final = Key("", "", "")
