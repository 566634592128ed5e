"""What a tenant's registered agents hold of its quota. Whole numbers only; the sum never passes the plan's bounds."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from cluster.admission.catalog import Quota
from cluster.agents.holding import NOTHING, Holding
from cluster.agents.quantity import format_cpu, format_memory
from cluster.errors import FieldError, IntegrityError


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """The sum over all registered agents of one tenant, running or not; a replica counts as an agent."""

    held: Holding = NOTHING

    def changed(self, before: Holding, after: Holding) -> QuotaUse:
        """Return the use when `after` is held in place of `before`; raises IntegrityError when it falls below nothing."""
        use = QuotaUse(self.held - before + after)
        if (self.held - before).least < 0:
            raise IntegrityError(f"Agents hold more of their tenant's quota than all of its agents together do: {self}.")
        return use

    def too_much(self, after: QuotaUse, quota: Quota) -> list[FieldError]:
        """Return what `after` has above `quota`, with what is used, asked for and left.

        Only of what grows: a tenant whose quota was lowered may always hold less than it does.
        """
        now, then = self.held.resources, after.held.resources
        rows = (
            ("agents", after.held.agents, quota.agents, self.held.agents, str),
            ("cpu", then.cpu_milli, quota.cpu, now.cpu_milli, format_cpu),
            ("memory", then.memory_bytes, quota.memory, now.memory_bytes, format_memory),
        )
        return [
            FieldError(
                f"quota.{name}",
                f"{show(used)} of {show(bound)} is used, {show(want - used)} asked for, {show(max(0, bound - used))} left",
            )
            for name, want, bound, used, show in rows
            if want > bound and want > used
        ]

    def to_bytes(self) -> bytes:
        """Return the value of the tenant's quota node."""
        return orjson.dumps(self.held.to_json())

    @classmethod
    def from_bytes(cls, value: bytes) -> QuotaUse:
        """Return the use that `to_bytes` wrote; raises IntegrityError for anything else."""
        try:
            return cls(Holding.from_json(orjson.loads(value)))
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A stored quota can't be read: {e!r}.") from None
