"""What an agent holds of its tenant's quota. Kubernetes' rule: what may exist counts, whether it runs or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cluster.agents.spec import AgentSpec, Resources


@dataclass(frozen=True, slots=True)
class Holding:
    """CPU and memory of all replicas together, and how many there may be: each counts as an agent."""

    resources: Resources
    agents: int

    def __add__(self, other: Holding) -> Holding:
        return Holding(self.resources + other.resources, self.agents + other.agents)

    def __sub__(self, other: Holding) -> Holding:
        mine, theirs = self.resources, other.resources
        left = Resources(mine.cpu_milli - theirs.cpu_milli, mine.memory_bytes - theirs.memory_bytes)
        return Holding(left, self.agents - other.agents)

    @property
    def least(self) -> int:
        """The smallest of its numbers: below 0 when more was taken from it than it had."""
        return min(self.resources.cpu_milli, self.resources.memory_bytes, self.agents)

    def at_least(self, other: Holding) -> Holding:
        """Return the larger of the two in each number."""
        mine, theirs = self.resources, other.resources
        most = Resources(max(mine.cpu_milli, theirs.cpu_milli), max(mine.memory_bytes, theirs.memory_bytes))
        return Holding(most, max(self.agents, other.agents))

    def to_json(self) -> dict[str, int]:
        """Return plain values that `from_json` reads."""
        return {"cpu_milli": self.resources.cpu_milli, "memory_bytes": self.resources.memory_bytes, "agents": self.agents}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Holding:
        """Return the holding that `to_json` wrote; raises KeyError or TypeError when it is not one."""
        return cls(Resources(value["cpu_milli"], value["memory_bytes"]), value["agents"])


NOTHING: Final = Holding(Resources(0, 0), 0)


def holding_of(spec: AgentSpec) -> Holding:
    """Return what an agent of this spec holds."""
    return Holding(spec.reserved, spec.max_replicas)
