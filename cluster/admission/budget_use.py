"""What a tenant's registered agents have reserved of its budget, and what was spent: their sum never passes the plan's bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from cluster.admission.catalog import BudgetBound
from cluster.agents.budget import NO_BUDGET, UNITS, Budget
from cluster.errors import FieldError, IntegrityError


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """`reserved` is the sum of the budgets of all registered agents; `settled` was spent and does not come back."""

    reserved: Budget = NO_BUDGET
    settled: Budget = NO_BUDGET

    def changed(self, before: Budget, after: Budget) -> BudgetUse:
        """Return the use when `after` is reserved in place of `before`; raises IntegrityError when it falls below nothing."""
        left = self.reserved - before
        if min(left.of(unit) for unit in UNITS) < 0:
            raise IntegrityError(f"Agents have reserved more of their tenant's budget than all of its agents together: {self}.")
        return BudgetUse(left + after, self.settled)

    def too_much(self, after: BudgetUse, bounds: BudgetBound) -> list[FieldError]:
        """Return each unit in which reserved and settled of `after` pass the bound, if they grow."""
        return [
            FieldError(
                f"budget.{unit}",
                f"{used} of {bound} is reserved or spent, {want - used} asked for, {max(0, bound - used)} left",
            )
            for unit in UNITS
            if (bound := bounds.of(unit)) is not None
            and (want := after._taken(unit)) > bound
            and want > (used := self._taken(unit))
        ]

    def _taken(self, unit: str) -> int:
        return self.reserved.of(unit) + self.settled.of(unit)

    def to_bytes(self) -> bytes:
        """Return the value of the tenant's budget node."""
        return orjson.dumps({"reserved": self.reserved.to_json(), "settled": self.settled.to_json()})

    @classmethod
    def from_bytes(cls, value: bytes) -> BudgetUse:
        """Return the use that `to_bytes` wrote; raises IntegrityError for anything else."""
        try:
            stored: dict[str, Any] = orjson.loads(value)
            return cls(Budget.from_json(stored["reserved"]), Budget.from_json(stored["settled"]))
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A stored budget can't be read: {e!r}.") from None
