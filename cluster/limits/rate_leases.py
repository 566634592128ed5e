"""What this process may take of its tenants' rates without asking: tokens that the limiter took out of their buckets for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cluster.errors import FieldError
from cluster.identity.principal import Principal
from cluster.limits.callers import Rate, owners
from cluster.limits.refusals import RateLimitedError, raises

# So much more than was taken since the last time is asked for ahead.
_AHEAD = 4


@dataclass(slots=True)
class _Rate:
    per_minute: int
    level: int = 0
    # Taken since the limiter was asked last.
    taken: int = 0
    wait_us: int = 0


class RateLeases:
    """Of one process. What it holds is lost with it, which never lets anyone go faster."""

    def __init__(self) -> None:
        self._rates: dict[str, _Rate] = {}

    def needed(self, bounds: Iterable[Rate], tokens: int) -> dict[str, int]:
        """Return what a call takes of which rate."""
        found: dict[str, int] = {}
        for bound in bounds:
            for what, per_minute, amount in (
                ("requests", bound.requests_per_minute, 1),
                ("tokens", bound.tokens_per_minute, tokens),
            ):
                if per_minute is not None and amount:
                    name = f"{bound.account}.{what}"
                    rate = self._rates.setdefault(name, _Rate(per_minute))
                    rate.per_minute = per_minute
                    found[name] = amount
        return found

    def lacking(self, rates: Mapping[str, int]) -> bool:
        """Whether there is too little for a call."""
        return any(self._rates[name].level < amount for name, amount in rates.items())

    def take(self, rates: Mapping[str, int]) -> None:
        """Take what a call needs; it must be there."""
        for name, amount in rates.items():
            rate = self._rates[name]
            rate.level -= amount
            rate.taken += amount

    def give_back(self, rates: Mapping[str, int], tokens: int) -> None:
        """Return what a call took and did not use; its request it has used in any case."""
        for name, amount in rates.items():
            if name.endswith(".tokens"):
                self._rates[name].level += max(0, amount - tokens)

    def low(self, rates: Mapping[str, int]) -> bool:
        """Whether the next calls of this kind might find too little; it looks at no other's, of which there may be many."""
        return any((rate := self._rates[name]).taken and rate.level < rate.taken for name in rates)

    def ask(self, waiting: Iterable[Mapping[str, int]]) -> dict[str, list[int]]:
        """Return what to ask the limiter for: by rate the least and the most that is of use, and how much a minute brings."""
        least: dict[str, int] = {}
        most: dict[str, int] = {}
        for rates in waiting:
            for name, amount in rates.items():
                if self._rates[name].level < amount:
                    least.setdefault(name, amount - self._rates[name].level)
                    most[name] = most.get(name, 0) + amount
        asked: dict[str, list[int]] = {}
        for name, rate in self._rates.items():
            if name in least or (rate.taken and rate.level < rate.taken):
                asked[name] = [least.get(name, 1), most.get(name, 0) + _AHEAD * rate.taken, rate.per_minute]
        return asked

    def apply(self, answers: Mapping[str, list[int]]) -> None:
        """Take over what the limiter gave, or how long it says to wait."""
        for name, (given, wait_us) in answers.items():
            rate = self._rates[name]
            rate.level, rate.taken, rate.wait_us = rate.level + given, 0, wait_us

    def headers(self, who: Principal) -> dict[str, str]:
        """Return RateLimit-Policy and RateLimit of a caller: an item for each of their tenant, project and key that has a rate.

        Empty where none has, or no call has asked for it.
        """
        policies, left = [], []
        for scope, name in (("", ""), *owners(who)):
            account = f"{scope}.{who.tenant}.{name}" if scope else f"tenant.{who.tenant}"
            rate = self._rates.get(f"{account}.requests")
            if rate is not None:
                label = f'"{scope}-requests"' if scope else '"requests"'
                wait_s = -(-rate.wait_us // 1_000_000) if rate.level < 1 else 0
                policies.append(f"{label};q={rate.per_minute};w=60")
                left.append(f"{label};r={max(0, rate.level)};t={wait_s}")
        return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(left)} if policies else {}

    def use(self, shown: Callable[[str], bool]) -> list[dict[str, str | int]]:
        """Return the rates whose name is `shown`: how much a minute brings, and what of it this process has left."""
        rates = sorted(self._rates.items())
        return [{"rate": n, "per_minute": r.per_minute, "left": max(0, r.level)} for n, r in rates if shown(n)]

    def refusal(self, rates: Mapping[str, int]) -> RateLimitedError | None:
        """Return why a call is not let in; None when nothing is lacking."""
        for name, amount in rates.items():
            rate = self._rates[name]
            if rate.level < amount:
                account, _, what = name.rpartition(".")
                scope, _, owner = account.partition(".")
                whose = "its plan" if scope == "tenant" else f"the {scope}'s `limits`"
                return RateLimitedError(
                    f"{scope.capitalize()} {owner.rpartition('.')[2]} uses all of the {rate.per_minute} {what} a minute "
                    f"that {whose} allow{'s' if scope == 'tenant' else ''}.",
                    hint=f"Retry after the time that Retry-After says, or have {raises(scope)} raise the `limits`.",
                    errors=[FieldError(f"limits.{what}_per_minute", f"{rate.per_minute} a minute")],
                    retry_after_s=max(1, -(-rate.wait_us // 1_000_000)),
                )
        return None
