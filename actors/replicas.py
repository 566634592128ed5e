"""Keeps as many replicas of each agent as its load takes and its owner asked for. What to do is `cluster.agents.scaling`'s."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from actors.agent_process import AgentProcess, Key
from actors.live_agents import LiveAgents
from cluster.agents.scaling import Trend, desired_replicas
from cluster.agents.spec import AgentSpec
from cluster.errors import NotFoundError, SovereignError

log = logging.getLogger(__name__)

LOOK_S = 0.5
# After a replica could not be added, for want of room or otherwise.
RETRY_S = 5.0


class Hands(Protocol):
    """Who starts and ends processes."""

    async def add_replica(self, key: Key) -> None:
        """Start one more replica; raises UnavailableError without room, NotFoundError for an agent that is gone."""
        ...

    async def retire(self, live: AgentProcess) -> None:
        """Begin to end a replica when its calls have ended."""
        ...


class Replicas:
    """Looks at what every replica last said of its load. For one event loop; asks nobody, so it costs a call nothing."""

    def __init__(self, live: LiveAgents, hands: Hands, background: Callable[[Awaitable[None]], object]) -> None:
        self._live = live
        self._hands = hands
        self._background = background
        # Agents that have processes also while nobody calls.
        self._kept: dict[Key, AgentSpec] = {}
        self._trends: dict[Key, Trend] = {}
        # Agents whose number is being changed.
        self._busy: set[Key] = set()
        self._not_before: dict[Key, float] = {}

    def keep(self, key: Key, spec: AgentSpec) -> None:
        """Have an agent's `min_replicas` there from now on."""
        if spec.min_replicas:
            self._kept[key] = spec
        else:
            self._kept.pop(key, None)

    def forget(self, key: Key) -> None:
        """Let an agent have no process."""
        self._kept.pop(key, None)
        self._not_before.pop(key, None)

    async def run(self) -> None:
        """Look again and again, as long as this process lives."""
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(LOOK_S)

    def look(self, now: float) -> None:
        """Begin to change what is not as it is to be."""
        specs = {live.key: live.spec for live in self._live if live.spec.max_replicas > 1} | self._kept
        self._trends = {key: trend for key, trend in self._trends.items() if key in specs}
        for key, spec in specs.items():
            if key in self._busy or now < self._not_before.get(key, now):
                continue
            replicas = self._live.of(key)
            wanted, self._trends[key] = desired_replicas([r.load for r in replicas], spec, self._trends.get(key, Trend()), now)
            if wanted != len(replicas):
                self._busy.add(key)
                self._background(self._change(key, wanted))

    async def _change(self, key: Key, wanted: int) -> None:
        try:
            while len(self._live.of(key)) < wanted:
                await self._hands.add_replica(key)
            # Those with the least to do go first, and of those the youngest.
            spare = sorted(self._live.of(key), key=lambda r: (r.load.calls, -r.generation))
            for live in spare[: max(0, len(spare) - wanted)]:
                await self._hands.retire(live)
        except NotFoundError:
            self.forget(key)
        except SovereignError as e:
            self._not_before[key] = time.monotonic() + RETRY_S
            log.warning("agent %s of %s stays at %d replicas: %s", key[1], key[0], len(self._live.of(key)), e)
        finally:
            self._busy.discard(key)
