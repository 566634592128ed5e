"""What a project or an API key may spend and how fast, within its tenant's plan; what is left out the plan alone bounds.

/tenants/<tenant>/allowances/<scope>.<name>     scope is `project` or `key`; no node is no bound of its own
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from cluster.admission.catalog import BudgetBound, CallLimits, Spending
from cluster.coordination.coordination import (
    Check,
    Coordination,
    CoordinationConflictError,
    Create,
    Op,
    Set,
)
from cluster.errors import IntegrityError
from cluster.limits.callers import NO_TERMS, CallerTerms, Rate
from cluster.limits.terms import Bound, bounds_of
from cluster.limits.windows import Window

VERSION: Final = 1


class AllowanceBudget(Spending):
    """What may be spent in a day, in a month (UTC) and in all; a unit left out is not bounded."""

    total: BudgetBound = BudgetBound()


class Allowance:
    """One project's or key's budget and limits."""

    __slots__ = ("budget", "limits")

    def __init__(self, budget: AllowanceBudget | None = None, limits: CallLimits | None = None) -> None:
        self.budget = budget or AllowanceBudget()
        self.limits = limits or CallLimits()

    def to_public(self) -> dict[str, Any]:
        """Return what those who manage it see, and set: what is not bounded is left out."""
        budget = {w: said for w, b in self.budget.model_dump(exclude_none=True).items() if (said := b)}
        return {"budget": budget, "limits": self.limits.model_dump(exclude_none=True)}

    def to_bytes(self) -> bytes:
        """Return the value of its node."""
        return orjson.dumps({"version": VERSION} | self.to_public())

    @classmethod
    def from_bytes(cls, name: str, value: bytes) -> Allowance:
        """Return the allowance that `to_bytes` wrote; raises IntegrityError for anything else, a later version among it."""
        try:
            stored = orjson.loads(value)
            version = stored["version"]
            found = cls(AllowanceBudget.model_validate(stored["budget"]), CallLimits.model_validate(stored["limits"]))
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"The stored budget and limits of {name} can't be read: {str(e)[:300]}.") from None
        if version != VERSION:
            raise IntegrityError(f"The stored budget and limits of {name} are of version {version!r}, and not {VERSION}.")
        return found

    @property
    def bounds_nothing(self) -> bool:
        """Whether it says nothing, as none does."""
        return not any(self.to_public().values())

    def terms(self, scope: str, owner: str) -> CallerTerms:
        """Return what bounds the calls of `owner`, "<tenant>.<name>"."""
        windows = ((Window.DAY, self.budget.day), (Window.MONTH, self.budget.month), (Window.TOTAL, self.budget.total))
        bounds = bounds_of([(scope, owner, window, bound) for window, bound in windows])
        most, limits = self.limits.concurrency, self.limits
        if most is not None:
            bounds += (Bound(scope, owner, Window.NOW, "calls", most),)
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return CallerTerms(bounds)
        return CallerTerms(bounds, (Rate(f"{scope}.{owner}", limits.requests_per_minute, limits.tokens_per_minute),))


class Allowances:
    """Reads them, and says what writes them; safe to use from many threads."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination

    def find(self, tenant: str, scope: str, name: str) -> Allowance | None:
        """Return one; None where nothing but the plan bounds."""
        node = self._coordination.get(_path(tenant, scope, name))
        found = Allowance.from_bytes(f"{scope} {name}", node.value) if node else None
        return None if found is None or found.bounds_nothing else found

    def shown(self, tenant: str, scope: str, name: str) -> dict[str, Any]:
        """Return one as those who manage it see it."""
        return (self.find(tenant, scope, name) or Allowance()).to_public()

    def terms(self, tenant: str, scope: str, name: str) -> CallerTerms:
        """Return what bounds the calls of a project or key beside its tenant's plan."""
        found = self.find(tenant, scope, name)
        return found.terms(scope, f"{tenant}.{name}") if found else NO_TERMS

    def change(self, tenant: str, scope: str, name: str, given: dict[str, Any], fence: Check) -> None:
        """Put what is `given` (budget, limits) in the place of what there was, while the `fence` holds."""
        path = _path(tenant, scope, name)
        while True:
            node = self._coordination.get(path)
            before = Allowance.from_bytes(f"{scope} {name}", node.value).to_public() if node else {}
            value = orjson.dumps({"version": VERSION} | (before or Allowance().to_public()) | given)
            try:
                self._coordination.transact([fence, Set(path, value, node.version) if node else Create(path, value)])
            except CoordinationConflictError as e:
                if e.path != path:
                    raise
                continue
            return

    @staticmethod
    def ops_to_create(tenant: str, scope: str, name: str, allowance: Allowance) -> list[Op]:
        """Return what gives a project or key that is made its allowance."""
        return [Create(_path(tenant, scope, name), allowance.to_bytes())] if not allowance.bounds_nothing else []


def _path(tenant: str, scope: str, name: str) -> str:
    return f"/tenants/{tenant}/allowances/{scope}.{name}"
