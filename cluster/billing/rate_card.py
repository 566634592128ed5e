"""Rate cards: what each meter costs, from when to when, as versioned YAML.

A card says a price for every meter that it bills and names those that are free: what is neither can't be billed. Periods are
half-open and in UTC. Numbers of money are in quotes, for a float is not the number that is written.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

import orjson
import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.admission.strict_yaml import parse_strict_yaml
from cluster.billing.money import MINOR_UNITS, Price
from cluster.errors import ConfigurationError

FORMAT: Final = 1
_ZERO: Final = Decimal(0)
_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME)]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Units = Annotated[int, Field(ge=0, le=2**62)]


class Meter(StrEnum):
    """What is counted, by the usage rows' columns; token classes are disjoint, times are what the name says."""

    CALLS = "calls"
    INPUT = "tokens_input_uncached"
    CACHE_READ = "tokens_cache_read"
    CACHE_WRITE = "tokens_cache_write"
    OUTPUT = "tokens_output"
    REASONING = "tokens_reasoning"
    TOOL_CALLS = "tool_calls"
    CPU = "cpu_us"
    RESERVED_CPU = "reserved_cpu_milli_ms"
    MEMORY = "mem_mib_ms"
    RUN_TIME = "latency_us"
    QUEUE_TIME = "queue_us"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Tier(_Strict):
    """A range of quantities, up to and with `up_to`; the last one has no end."""

    up_to: Units | None = None
    price: Price
    # What the tier costs once it is reached.
    flat: Price = Field(default_factory=lambda: _ZERO)


class _Metered(_Strict):
    id: Name
    meter: Meter
    # Which models, as `provider:model` with * and ?; the longest pattern that fits decides.
    models: list[Pattern] = Field(default=["*"], min_length=1)
    # Of each period, before anything costs.
    included: Units = 0
    minimum: Price | None = None
    maximum: Price | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"{self.id}: the minimum is above the maximum")
        return self


class PerUnit(_Metered):
    """So much for `per` units, and in proportion."""

    kind: Literal["per_unit"]
    price: Price
    per: Annotated[int, Field(ge=1, le=2**62)] = 1


class _Tiered(_Metered):
    tiers: list[Tier] = Field(min_length=1, max_length=100)
    per: Annotated[int, Field(ge=1, le=2**62)] = 1

    @field_validator("tiers")
    @classmethod
    def _rising(cls, tiers: list[Tier]) -> list[Tier]:
        ends = [tier.up_to for tier in tiers]
        if ends[-1] is not None:
            raise ValueError("the last tier has no up_to, so that every quantity has a price")
        bounded = [end for end in ends[:-1] if end is not None]
        if len(bounded) != len(ends) - 1 or any(a >= b for a, b in zip([0, *bounded], bounded, strict=False)):
            raise ValueError("up_to must rise from tier to tier, above 0")
        return tiers


class Graduated(_Tiered):
    """Each unit at the price of the tier that it is in."""

    kind: Literal["graduated"]


class Volume(_Tiered):
    """All units at the price of the tier that the quantity reaches."""

    kind: Literal["volume"]


class Package(_Metered):
    """Whole packages of `size` units; one that is begun is paid for."""

    kind: Literal["package"]
    price: Price
    size: Annotated[int, Field(ge=1, le=2**62)]


class Matrix(_Strict):
    """Prices of tokens by model and class, for `per` tokens."""

    kind: Literal["matrix"]
    id: Name
    per: Annotated[int, Field(ge=1, le=2**62)] = 1_000_000
    prices: dict[Pattern, dict[Meter, Price]] = Field(min_length=1)


class Flat(_Strict):
    """So much a whole period, by the second of it in which the tenant had the card."""

    kind: Literal["flat"]
    id: Name
    price: Price


Rule = Annotated[PerUnit | Graduated | Volume | Package | Matrix | Flat, Field(discriminator="kind")]


class Discount(_Strict):
    """Hundredths of a percent off what the rules come to; without `rules` off all."""

    id: Name
    basis_points: Annotated[int, Field(ge=1, le=10_000)]
    rules: list[Name] = []


class RateCard(_Strict):
    """One version of a card."""

    format: Literal[1]
    card: Name
    version: Annotated[int, Field(ge=1)]
    currency: str
    effective_from: AwareDatetime
    # Exclusive; None for as long as nothing follows.
    effective_until: AwareDatetime | None = None
    rules: list[Rule] = Field(min_length=1, max_length=1000)
    free: list[Meter] = []
    discounts: list[Discount] = []
    # Of the whole invoice, before tax.
    minimum: Price | None = None
    maximum: Price | None = None

    @field_validator("currency")
    @classmethod
    def _known(cls, currency: str) -> str:
        if currency not in MINOR_UNITS:
            raise ValueError(f"{currency} has no minor units here; there are {', '.join(sorted(MINOR_UNITS))}")
        return currency

    @field_validator("effective_from", "effective_until")
    @classmethod
    def _utc(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and (moment.utcoffset() or moment.microsecond):
            raise ValueError("must be a whole second of UTC, such as 2026-01-01T00:00:00Z")
        return moment

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.effective_until is not None and self.effective_until <= self.effective_from:
            raise ValueError("effective_until must be after effective_from")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("the minimum is above the maximum")
        ids = [rule.id for rule in self.rules]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"two rules are called {twice[0]}")
        for discount in self.discounts:
            if unknown := sorted(set(discount.rules) - set(ids)):
                raise ValueError(f"discount {discount.id} is on {unknown[0]}, which is no rule")
        prices = [(meter, pattern) for rule in self.rules for meter, pattern in covers(rule)]
        if twice_priced := sorted({p for p in prices if prices.count(p) > 1}):
            meter, pattern = twice_priced[0]
            raise ValueError(f"{meter} of {pattern} has two prices")
        if both := sorted(set(self.free) & {meter for meter, _ in prices}):
            raise ValueError(f"{both[0]} has a price and is free")
        return self

    def rule_of(self, meter: Meter, model: str) -> Rule | None:
        """Return the rule that prices the meter for the model: the one with the longest pattern that fits."""
        found = [
            (len(pattern), pattern, rule)
            for rule in self.rules
            for covered, pattern in covers(rule)
            if covered is meter and fnmatchcase(model, pattern)
        ]
        return max(found, key=lambda f: f[:2])[2] if found else None

    @property
    def digest(self) -> str:
        """SHA-256 of what the card says, in hexadecimal: invoices name it."""
        return hashlib.sha256(orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()


def covers(rule: Rule) -> list[tuple[Meter, str]]:
    """Return the meters and patterns of models that a rule prices."""
    if isinstance(rule, Matrix):
        return [(meter, pattern) for pattern, prices in rule.prices.items() for meter in prices]
    if isinstance(rule, Flat):
        return []
    return [(rule.meter, pattern) for pattern in rule.models]


def read_card(text: str, name: str = "the rate card") -> RateCard:
    """Return the card that YAML `text` describes; raises ConfigurationError that names each wrong place."""
    try:
        # As JSON, which has text for moments and choices, and no number that is not what was written.
        document = orjson.dumps(parse_strict_yaml(text))
    except (yaml.YAMLError, TypeError) as e:
        raise ConfigurationError(f"{name} is no YAML that can be taken: {e}", hint="Check its indentation and quotes.") from None
    try:
        return RateCard.model_validate_json(document)
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or 'card'}: {x['msg']}" for x in e.errors(include_url=False)[:20]]
        raise ConfigurationError(f"{name} is not valid: {'; '.join(wrong)}.", hint="See docs/rate-cards.md.") from None


def check_versions(versions: list[RateCard]) -> list[RateCard]:
    """Return the versions of one card in order; raises ConfigurationError when they overlap, leave a gap or are misnumbered."""
    versions = sorted(versions, key=lambda c: c.effective_from)
    for earlier, later in pairwise(versions):
        until = earlier.effective_until
        if until != later.effective_from:
            what = "overlap" if until is None or until > later.effective_from else "leave a gap"
            raise ConfigurationError(
                f"Versions {earlier.version} and {later.version} of {earlier.card} {what}.",
                hint=f"Let {earlier.version} be effective until {later.effective_from.isoformat()}.",
            )
        if earlier.version >= later.version:
            why = f"{earlier.card} has version {later.version} after {earlier.version}."
            raise ConfigurationError(why, hint="Number them as they follow.")
    return versions


def card_at(cards: list[RateCard], card: str, moment: datetime) -> RateCard:
    """Return the version of `card` that holds at `moment`; raises ConfigurationError when there is none, or more than one.

    Versions follow each other without a gap or an overlap, and a version never changes.
    """
    for version in check_versions([c for c in cards if c.card == card]):
        if version.effective_from <= moment and (version.effective_until is None or moment < version.effective_until):
            return version
    raise ConfigurationError(f"There is no version of {card} for {moment.isoformat()}.", hint="Add one that covers it.")
