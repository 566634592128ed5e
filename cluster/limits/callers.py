"""What bounds the calls of whoever asks, beside what bounds the agent's: the budgets and rates of their project and their key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from cluster.errors import IntegrityError
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.limits.terms import Bound, bounds_from_json, bounds_to_json


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast: None is no bound. The account is "tenant.acme", "project.acme.web", "key.acme.3f9a…"."""

    account: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class CallerTerms:
    """Of one project, of one key, or of both together."""

    bounds: tuple[Bound, ...] = ()
    rates: tuple[Rate, ...] = ()

    def __add__(self, other: CallerTerms) -> CallerTerms:
        """Return both: a call keeps within each."""
        return CallerTerms(self.bounds + other.bounds, self.rates + other.rates)

    @property
    def units(self) -> frozenset[str]:
        """The units in which anything is bounded."""
        return frozenset(b.unit for b in self.bounds) | {"tokens" for r in self.rates if r.tokens_per_minute is not None}

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads."""
        rates = [[r.account, r.requests_per_minute, r.tokens_per_minute] for r in self.rates]
        return {"bounds": bounds_to_json(self.bounds), "rates": rates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the terms that `to_json` wrote; raises IntegrityError."""
        try:
            return cls(bounds_from_json(value["bounds"]), tuple(Rate(*rate) for rate in value["rates"]))
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A caller's terms can't be read: {e!r}.") from None


NO_TERMS: Final = CallerTerms()
OWNER_SCOPES: Final = ("project", "key")


def owners(who: Principal) -> tuple[tuple[str, str], ...]:
    """Return scope and name of what `who` may be bounded by: their project, and the key that is behind them."""
    key = who.subject.removeprefix("key:") if who.subject.startswith("key:") else ""
    return (("project", str(who.project)), *((("key", key),) if key else ()))


def shown_to(who: Principal) -> Callable[[str], bool]:
    """Return which accounts and rates `who` may see: their tenant's, and of its keys' their own alone unless they manage keys."""
    keys = f"key.{who.tenant}."
    mine = tuple(f"{scope}.{who.tenant}.{name}." for scope, name in owners(who))
    ours = (f"tenant.{who.tenant}.", f"agent.{who.tenant}.", f"project.{who.tenant}.")
    shown = ours + ((keys,) if Scope.KEYS_MANAGE in who.scopes else mine)
    return lambda name: name.startswith(shown)
