"""How much CPU and memory is free for agents, known without asking Ray before each start.

Ray's own account lags behind by up to a second, and a start that finds no room would wait there unseen. So what agents
hold is counted here, and what everything else holds (a model, a job) is learnt from Ray whenever agents stand still.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster.agents.spec import Resources

# Ray's account is believed when no agent came or went for so long.
SETTLED_S = 2.0


@dataclass(frozen=True, slots=True)
class Account:
    """What the cluster has in all, and what of it nobody holds, as Ray says."""

    total: Resources
    available: Resources


def account_of_ray() -> Account:
    """Return Ray's account. Blocks: never call it on an event loop."""
    untyped: Any = ray
    return Account(_resources(untyped.cluster_resources()), _resources(untyped.available_resources()))


class Room:
    """What agents hold, against what there is. For one event loop; before the first account everything fits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held = Resources(0, 0)
        self._total: Resources | None = None
        self._others = Resources(0, 0)
        self._changed_at = clock()

    def fits(self, wanted: Resources) -> bool:
        """Return whether `wanted` is free."""
        if self._total is None:
            return True
        return (
            self._held.cpu_milli + self._others.cpu_milli + wanted.cpu_milli <= self._total.cpu_milli
            and self._held.memory_bytes + self._others.memory_bytes + wanted.memory_bytes <= self._total.memory_bytes
        )

    def take(self, wanted: Resources) -> None:
        """Count a start."""
        self._change(wanted.cpu_milli, wanted.memory_bytes)

    def give(self, held: Resources) -> None:
        """Count an end."""
        self._change(-held.cpu_milli, -held.memory_bytes)

    def learn(self, account: Account) -> None:
        """Believe Ray's totals, and, when agents stood still, that whatever else is taken is held by others."""
        self._total = account.total
        if self._clock() - self._changed_at >= SETTLED_S:
            self._others = Resources(
                max(0, account.total.cpu_milli - account.available.cpu_milli - self._held.cpu_milli),
                max(0, account.total.memory_bytes - account.available.memory_bytes - self._held.memory_bytes),
            )

    def _change(self, cpu_milli: int, memory_bytes: int) -> None:
        self._held = Resources(self._held.cpu_milli + cpu_milli, self._held.memory_bytes + memory_bytes)
        self._changed_at = self._clock()


def _resources(found: dict[str, float]) -> Resources:
    return Resources(round(found.get("CPU", 0) * 1000), int(found.get("memory", 0)))
