"""The lives of agents' processes once they answer: watched, given back when idle, ended, and their ends recorded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

from actors.agent_process import DRAIN_TIMEOUT_S, AgentProcess, Key
from actors.background import Background, Runner
from actors.live_agents import LiveAgents
from actors.room import Room
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError
from cluster.agents.record import AgentRecord
from cluster.errors import NotFoundError, SovereignError, StaleGenerationError, StorageError, UnavailableError
from cluster.identity.ids import AgentId, TenantId

log = logging.getLogger(__name__)

# Between tries to record an end that the store did not take.
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 10.0


class Lives:
    """Sees to it that each process is ended once, its room given back and its end recorded. For one event loop."""

    def __init__(
        self, live: LiveAgents, room: Room, *, registrar: Registrar, run: Runner, background: Background, idle_s: float
    ) -> None:
        self.live = live
        self.room = room
        self._registrar = registrar
        self._run = run
        self._background = background
        self._idle_s = idle_s
        # One step of an agent's life at a time; a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: Key) -> asyncio.Lock:
        """Return the lock under which an agent starts, ends and gives its process to another."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def put(self, live: AgentProcess) -> None:
        """Add a process, or add it again: whoever watched it may have looked away while it was not there."""
        self.live.put(live)
        self._watch(live)

    def _watch(self, live: AgentProcess) -> None:
        """Notice the end of an agent's process when it happens, and take back one that nobody has called for long."""

        async def while_it_lives() -> None:
            idle_s = math.inf if live.spec.min_replicas or live.gang else self._idle_s
            while live in self.live:
                news = await live.watch(idle_s)
                if news == "gone":
                    await self.lost(live)
                elif news == "idle":
                    if await self.end_idle(live):
                        log.info("agent %s had no call for %g s and gave its process back", live.key[1], idle_s)
                elif news != "load":
                    return

        self._background(while_it_lives())

    async def lost(self, live: AgentProcess) -> None:
        """See to a process that ended by itself, or does not answer any more."""
        if self.live.take(live):
            live.kill()
            self.room.give(live.resources)
            log.warning("agent %s of %s ended by itself in generation %d", live.key[1], live.key[0], live.generation)
            async with self.lock(live.key):
                await self.ended(live.key, live.generation, "lost")

    async def end_idle(self, live: AgentProcess) -> bool:
        """End the process of an agent without a call; returns False, and it lives on, when one came meanwhile."""
        if live not in self.live:
            return False
        async with self.lock(live.key):
            if not self.live.spare(live) or not self.live.take(live):
                return False
            if not await live.drain(only_idle=True):
                self.put(live)
                return False
            self.room.give(live.resources)
            await self.ended(live.key, live.generation, "drained")
            return True

    async def passivate(self, live: AgentProcess, *, within_s: float = DRAIN_TIMEOUT_S) -> None:
        """End a process that was taken out, when its calls have ended or `within_s` is over."""
        tenant, agent = TenantId(live.key[0]), AgentId(live.key[1])
        with contextlib.suppress(SovereignError):  # one that is revoked says so already; its end is what counts
            await self._run(partial(self._registrar.mark_draining, tenant, agent, live.generation))
        await live.drain(within_s=within_s)
        self.room.give(live.resources)
        await self.ended(live.key, live.generation, "drained")

    async def ended(self, key: Key, generation: int, reason: str) -> None:
        """Record that a generation has no process any more; nothing is to be done when its row went on without it.

        A store that fails is asked again in the background until it takes it: the quota of a removed agent hangs on it.
        """
        mark = partial(self._registrar.mark_passive, TenantId(key[0]), AgentId(key[1]), generation, reason)
        try:
            with contextlib.suppress(NotFoundError, StaleGenerationError):
                await self._run(mark)
        except DeposedError:
            log.warning("generation %d of %s is a later governor's to record", generation, key[1])
        except (UnavailableError, StorageError) as e:
            log.warning("the end of generation %d of %s is not recorded yet: %s", generation, key[1], e)
            self._background(self._record_later(mark))

    async def _record_later(self, mark: Callable[[], AgentRecord]) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)
            with contextlib.suppress(UnavailableError, StorageError):
                with contextlib.suppress(NotFoundError, StaleGenerationError, DeposedError):
                    await self._run(mark)
                return
