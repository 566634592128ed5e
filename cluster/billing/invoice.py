"""Invoices: a pure function of what was used, the card, the files it was read from and the exchange rate.

The same inputs give the same bytes, at any time and on any machine: keys are sorted, money is text or whole minor units, and
nothing says when or where the document was made. What is final is never changed; `notes.py` has what may follow it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Protocol

import orjson

from cluster.billing.money import AMOUNT_PLACES, MINOR_UNITS, allocate, minor_units
from cluster.billing.period import Period
from cluster.billing.rate_card import Meter, RateCard
from cluster.billing.rating import Key, RatedLine, rate
from cluster.errors import ConflictError

FORMAT: Final = 1
# Raise it with every change of what an invoice of the same inputs says: replays name the release that they need.
RULES: Final = 1


@dataclass(frozen=True, slots=True)
class Source:
    """A file that usage was read from, and the digest of its rows."""

    key: str
    row_digest: str


@dataclass(frozen=True, slots=True)
class Tax:
    """Tax on the total: basis points of it, and what it is called."""

    name: str
    basis_points: int


class TaxAdapter(Protocol):
    """Who knows which taxes are due; the answer is part of the invoice, so that a replay asks nobody."""

    def taxes(self, tenant: str, currency: str, total_minor: int) -> Sequence[Tax]:
        """Return the taxes on a total, in the order in which they are shown."""
        ...


class NoTax:
    """No tax is added here; whoever pays accounts for it."""

    def taxes(self, tenant: str, currency: str, total_minor: int) -> Sequence[Tax]:
        """Return none."""
        return ()


@dataclass(frozen=True, slots=True)
class Billable:
    """Everything that an invoice depends on."""

    tenant: str
    period: Period
    # When in the period the tenant had the card.
    held: Period
    card: RateCard
    used: Mapping[tuple[Key, Meter], int]
    # In any order.
    sources: Sequence[Source]
    taxes: Sequence[Tax] = ()
    # What one unit of the card's currency was worth in others when the period was closed, as text, for whoever reports.
    exchange: Mapping[str, str] = field(default_factory=dict)


def invoice(billable: Billable) -> bytes:
    """Return the invoice as canonical JSON; raises what `rate` raises.

    It is rounded once, at its total; lines get whole minor units by the largest remainder, so that they are the total.
    """
    card, currency = billable.card, billable.card.currency
    lines = rate(card, billable.used, billable.held, billable.period)
    exact = sum(line.amount_e12 for line in lines)
    total = minor_units(Fraction(exact, 10**AMOUNT_PLACES), currency)
    billed = allocate(total, [Fraction(line.amount_e12) for line in lines])
    taxes = [_tax(tax, total) for tax in billable.taxes]
    return sealed(
        {
            "format": FORMAT,
            "rules": RULES,
            "kind": "invoice",
            "number": number(billable.tenant, billable.period),
            "tenant": billable.tenant,
            "period": _stretch(billable.period),
            "held": _stretch(billable.held),
            "currency": currency,
            "minor_units": MINOR_UNITS[currency],
            "card": {"card": card.card, "version": card.version, "digest": card.digest},
            "exchange": dict(billable.exchange),
            "sources": sorted([[source.key, source.row_digest] for source in billable.sources]),
            "lines": [_line(line, minor) for line, minor in zip(lines, billed, strict=True)],
            "total_e12": str(exact),
            "total_minor": total,
            "taxes": taxes,
            "due_minor": total + sum(tax["minor"] for tax in taxes),
        }
    )


def read(final: bytes) -> dict[str, Any]:
    """Return an invoice or note; raises ConflictError when it is not as it was made, or its sums are not its lines."""
    try:
        document = orjson.loads(final)
        again = sealed({name: value for name, value in document.items() if name != "digest"})
        lines, taxes = document["lines"], document["taxes"]
        sums = (
            sum(line["minor"] for line in lines) == document["total_minor"]
            and sum(int(line["amount_e12"]) for line in lines) == int(document["total_e12"])
            and document["total_minor"] + sum(tax["minor"] for tax in taxes) == document["due_minor"]
        )
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise ConflictError("This is no invoice.", hint="Make it again with `sovereign invoice replay`.") from None
    if again != final or not sums:
        raise ConflictError(
            f"The invoice {document.get('number')} is not as it was made: its digest or its sums are others.",
            hint="Make it again with `sovereign invoice replay`, and find out who changed it.",
        )
    return dict(document)


def sealed(document: Mapping[str, Any]) -> bytes:
    """Return canonical JSON with the digest of all the rest."""
    content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    sealed = dict(document) | {"digest": hashlib.sha256(content).hexdigest()}
    return orjson.dumps(sealed, option=orjson.OPT_SORT_KEYS)


def number(tenant: str, period: Period) -> str:
    """Return an invoice's number, which is the same whenever it is made: one tenant has one a period."""
    return f"{tenant}-{period.begin:%Y%m%d}-{period.end:%Y%m%d}"


def _line(line: RatedLine, minor: int) -> dict[str, Any]:
    return {
        "rule": line.rule,
        "meter": line.meter,
        "project": line.key.project,
        "agent": line.key.agent,
        "model": line.key.model,
        "quantity": line.quantity,
        "amount_e12": str(line.amount_e12),
        "minor": minor,
    }


def _tax(tax: Tax, total: int) -> dict[str, Any]:
    return {"name": tax.name, "basis_points": tax.basis_points, "minor": round(Fraction(total * tax.basis_points, 10_000))}


def _stretch(period: Period) -> dict[str, str]:
    return {"from": f"{period.begin:%Y-%m-%dT%H:%M:%SZ}", "until": f"{period.end:%Y-%m-%dT%H:%M:%SZ}"}
