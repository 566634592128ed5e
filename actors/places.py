"""Where an agent can start: in room that is free, in the process of an idle agent, or in room that idle agents give back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from actors.agent_process import AgentProcess, Key
from actors.background import Runner
from actors.lives import Lives
from actors.nodes import KnownNodes
from actors.start_order import StartOrder
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.agents.spec import AgentSpec, Resources
from cluster.errors import UnavailableError
from cluster.identity.ids import AgentId, TenantId

log = logging.getLogger(__name__)
T = TypeVar("T")

# While there is room, an agent that was called so lately keeps its process, and who wakes starts cold.
REBIND_IDLE_S = 30.0
# Between two looks whether a start that waits for Ray still has its room.
LOOK_INTERVAL_S = 2.0


class Places:
    """Knows what agents hold, and whose process or room another one may have. For one event loop."""

    def __init__(
        self,
        lives: Lives,
        nodes: KnownNodes,
        pool: WarmPool,
        *,
        registrar: Registrar,
        run: Runner,
        agent_key: Callable[[Key, int], bytes],
    ) -> None:
        self._lives = lives
        self._live = lives.live
        self._room = lives.room
        self._nodes = nodes
        self._pool = pool
        self._registrar = registrar
        self._run = run
        self._agent_key = agent_key

    def fits(self, spec: AgentSpec) -> bool:
        """Return whether there is room for the agent, over all nodes and on one of those that it may be on."""
        return self._room.fits(spec.resources) and self._nodes.have_place(spec, ((x.node, x.spec.resources) for x in self._live))

    async def take_idle(self, order: StartOrder) -> AgentProcess | None:
        """Return the process of an idle agent of the same tenant and size, made this one; None when there is none to be had.

        A fresh process costs seconds of CPU, so this is what lets more agents be at work than there is room for.
        """
        wanted, fits = order.record.spec.resources, self.fits(order.record.spec)
        if fits and not self._pool.empty:
            return None
        idle_s = REBIND_IDLE_S if fits else 0.0
        spec, known = order.record.spec, [x for x in self._live if x.key[0] == order.tenant and x.resources == wanted]
        alike = [x for x in known if self._live.spare(x) and self._nodes.allow(spec, x.node)]
        tried: set[AgentProcess] = set()
        for other in sorted((x for x in alike if x.idle_for_s() > idle_s), key=AgentProcess.idle_for_s, reverse=True):
            tried.add(other)
            if live := await self._take_over(other, order):
                return live
        if fits:
            return None
        for other in await self._idle([x for x in alike if x not in tried]):  # that had a call since it last spoke of itself
            if live := await self._take_over(other, order):
                return live
        return None

    async def _take_over(self, other: AgentProcess, order: StartOrder) -> AgentProcess | None:
        """Make the process of `other` the agent of `order`; None when it has something to do.

        The other's journal is closed before its row says so, and its row says so before the process is anybody else's.
        """
        lock = self._lives.lock(other.key)
        # Nobody is waited for: whoever holds the lock may wait for the turn that we hold.
        if other not in self._live or not self._live.spare(other) or lock.locked():
            return None
        async with lock:
            if not self._live.take(other):
                return None
            became = await other.vacate()
            if became == "busy":
                other.idle_since = None
                self._lives.put(other)
                return None
            if became == "ended":
                self._room.give(other.resources)
                await self._lives.ended(other.key, other.generation, "drained")
                return None
            spec, agent = order.record.spec, AgentId(other.key[1])
            move = partial(
                self._registrar.rebind, TenantId(order.tenant), spec.agent_id, order.generation, agent, other.generation
            )
            try:
                await self._run(move)
            except BaseException:
                other.kill()
                self._room.give(other.resources)
                await self._lives.ended(other.key, other.generation, "lost")
                raise
        try:
            live = await other.rebind(order, self._agent_key(order.key, order.generation))
        except BaseException:
            self._room.give(other.resources)
            raise
        log.info("the process of agent %s became agent %s", agent, spec.agent_id)
        return live

    async def take_room(self, spec: AgentSpec) -> None:
        """Count what the agent declares as held, after ending agents that have nothing to do where it may be, if need be.

        Those idle longest go first. Raises UnavailableError at once when that is not enough.
        """
        wanted = spec.resources
        if not self.fits(spec):
            for live in await self._idle([x for x in self._live if self._live.spare(x) and self._nodes.allow(spec, x.node)]):
                # Nobody is waited for: whoever holds the lock may wait for the turn that we hold.
                if not self._lives.lock(live.key).locked() and await self._lives.end_idle(live) and self.fits(spec):
                    break
            if not self.fits(spec):
                raise no_room(spec.agent_id, wanted)
        self._room.take(wanted)

    async def while_there_is_room(self, start: Awaitable[T]) -> T:
        """Return what `start` returns; give it up when a node is lost meanwhile and agents hold more than is left.

        Ray would wait for a place that does not come. Raises UnavailableError then.
        """
        starting = asyncio.ensure_future(start)
        try:
            while not (await asyncio.wait({starting}, timeout=LOOK_INTERVAL_S))[0]:
                if not self._room.fits(Resources(0, 0)):
                    raise UnavailableError("The room for it was lost or taken.", hint="Retry in a moment.", retry_after_s=1)
            return await starting
        finally:
            starting.cancel()

    @staticmethod
    async def _idle(among: list[AgentProcess]) -> list[AgentProcess]:
        """Return those without a call, those that have been so for longest first."""
        said = await asyncio.gather(*(live.status() for live in among))
        idle = [(status["idle_s"], live) for live, status in zip(among, said, strict=True) if status]
        return [live for idle_s, live in sorted(idle, key=lambda x: -x[0]) if idle_s > 0]


def no_room(agent: AgentId, wanted: Resources) -> UnavailableError:
    """Return the error of an agent that would have to wait for others."""
    return UnavailableError(
        f"There is no room for agent {agent} now: it declares {wanted.cpu_milli}m CPU and "
        f"{wanted.memory_bytes >> 20} MiB, and the agents that hold them are at work.",
        hint="Retry in a moment. SOVEREIGN_NUM_CPUS and SOVEREIGN_MEMORY_BYTES say what agents share.",
        retry_after_s=1,
    )
