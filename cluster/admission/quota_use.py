"""What a tenant's registered agents hold of its quota. Whole numbers only; the sum never passes the plan's bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from cluster.admission.catalog import Quota
from cluster.agents.quantity import format_cpu, format_memory
from cluster.agents.spec import AgentSpec, Resources
from cluster.errors import FieldError, IntegrityError, QuotaExceededError

NOTHING: Final = Resources(0, 0)


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """The sum over all registered agents of one tenant, running or not; a replica counts as an agent."""

    resources: Resources = NOTHING
    agents: int = 0

    def plus(self, spec: AgentSpec) -> QuotaUse:
        """Return the use with `spec` registered on top."""
        return QuotaUse(self.resources + spec.reserved, self.agents + spec.max_replicas)

    def minus(self, spec: AgentSpec) -> QuotaUse:
        """Return the use without `spec`; raises IntegrityError when it would fall below nothing."""
        left, held = spec.reserved, self.resources
        use = QuotaUse(
            Resources(held.cpu_milli - left.cpu_milli, held.memory_bytes - left.memory_bytes), self.agents - spec.max_replicas
        )
        if min(use.agents, use.resources.cpu_milli, use.resources.memory_bytes) < 0:
            raise IntegrityError(f"Agent {spec.agent_id} holds more of its tenant's quota than all agents together do: {self}.")
        return use

    def require_room(self, spec: AgentSpec, quota: Quota, tenant: str) -> None:
        """Raise QuotaExceededError, with what is used, asked for and left, when `spec` does not fit beside this use."""
        after = self.plus(spec)
        rows = (
            ("agents", after.agents, quota.agents, self.agents, str),
            ("cpu", after.resources.cpu_milli, quota.cpu, self.resources.cpu_milli, format_cpu),
            ("memory", after.resources.memory_bytes, quota.memory, self.resources.memory_bytes, format_memory),
        )
        errors = [
            FieldError(
                f"quota.{name}",
                f"{show(used)} of {show(bound)} is used, {show(want - used)} asked for, {show(bound - used)} left",
            )
            for name, want, bound, used, show in rows
            if want > bound
        ]
        if errors:
            raise QuotaExceededError(
                f"Agent {spec.agent_id} does not fit into the quota of tenant {tenant}; nothing was registered.",
                hint="Ask for less, remove agents that are not needed, or have an operator raise the plan's quota.",
                errors=errors,
            )

    def to_bytes(self) -> bytes:
        """Return the value of the tenant's quota node."""
        return orjson.dumps(
            {"cpu_milli": self.resources.cpu_milli, "memory_bytes": self.resources.memory_bytes, "agents": self.agents}
        )

    @classmethod
    def from_bytes(cls, value: bytes) -> QuotaUse:
        """Return the use that `to_bytes` wrote; raises IntegrityError for anything else."""
        try:
            stored: dict[str, Any] = orjson.loads(value)
            return cls(Resources(stored["cpu_milli"], stored["memory_bytes"]), stored["agents"])
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A stored quota can't be read: {e!r}.") from None
