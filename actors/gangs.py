"""Starts gangs: room for all members first, then all of them; when one does not come up, none of them stays.

The room is a placement group, which a gang keeps from its first start to its removal, so that a member that was lost finds its
place again. Members do not give their processes back while nobody calls, and lend them to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from actors.agent_process import AgentProcess, Key
from actors.background import Runner
from actors.live_agents import LiveAgents
from actors.nodes import KnownNodes
from actors.placement_groups import group_names, hold_group, release_group
from actors.places import Places
from actors.room import Room
from cluster.admission.registrar import Registrar
from cluster.agents.gang import GROUP_PREFIX, Gang
from cluster.agents.record import AgentRecord
from cluster.agents.spec import Resources
from cluster.errors import NotFoundError, UnavailableError
from cluster.identity.ids import AgentId, TenantId

log = logging.getLogger(__name__)

# Threads that may wait for Ray to find room for a gang: the others are for wakes.
HOLDING = 2

# Starts one member at its place, unless it runs; and ends processes.
StartMember = Callable[[Key, Any], Awaitable[AgentProcess]]
EndMembers = Callable[[list[AgentProcess]], Awaitable[None]]


class Gangs:
    """Which gangs hold room, and which are being started. For one event loop."""

    def __init__(
        self,
        live: LiveAgents,
        nodes: KnownNodes,
        room: Room,
        places: Places,
        *,
        registrar: Registrar,
        run: Runner,
        start: StartMember,
        end: EndMembers,
    ) -> None:
        self._live = live
        self._nodes = nodes
        self._room = room
        self._places = places
        self._registrar = registrar
        self._run = run
        self._start_member = start
        self._end = end
        # What each group holds, by its name.
        self._held: dict[str, Resources] = {}
        self._holding = asyncio.Semaphore(HOLDING)
        self._starting: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def start(self, record: AgentRecord) -> None:
        """Start what is not running of the gang of `record`, once however many ask; raises, and then nothing new is left."""
        key = (str(record.tenant), record.gang)
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = asyncio.ensure_future(self._start(record.tenant, record.gang))
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        await asyncio.shield(task)

    async def release(self, group: str) -> None:
        """Give the room of a gang back when its members have ended."""
        held = self._held.pop(group, None)
        if held is not None:
            self._room.give(held)
        await self._run(partial(release_group, group))

    async def end_of(self, gangs: set[tuple[str, str]]) -> None:
        """End gangs (tenant and gang id) that lost a place, whole: when they are called they start elsewhere, together."""
        for tenant, gang_id in gangs:
            try:
                gang = await self._run(partial(self._registrar.gang, TenantId(tenant), gang_id))
            except NotFoundError:
                continue  # it is just being removed
            await self._end([live for agent in gang.agents for live in self._live.of((tenant, agent)) if self._live.take(live)])
            await self.release(gang.group)

    async def recover(self) -> None:
        """Count what groups of an earlier governor hold, and remove those of gangs that are gone."""
        known = {gang.group: gang for gang in await self._run(self._registrar.gangs)}
        for group in await self._run(partial(group_names, GROUP_PREFIX)):
            if group not in known:
                log.warning("removing the place %s: no gang stands behind it", group)
                await self._run(partial(release_group, group))
                continue
            try:
                self._hold(group, await self._members(known[group]))
            except NotFoundError:
                await self.release(group)

    async def _start(self, tenant: TenantId, gang_id: str) -> None:
        gang = await self._run(partial(self._registrar.gang, tenant, gang_id))
        members = await self._members(gang)
        keys = [(gang.tenant, agent) for agent in gang.agents]
        running = {key for key in keys if self._live.of(key)}
        places = await self._room_for(gang, members)
        starts = (self._start_member(key, place) for key, place in zip(keys, places, strict=True))
        started = await asyncio.gather(*starts, return_exceptions=True)
        failure = next((e for e in started if isinstance(e, BaseException)), None)
        if failure is None:
            return
        fresh = [x for x in started if isinstance(x, AgentProcess) and x.key not in running and self._live.take(x)]
        await self._end(fresh)
        if not running:
            await self.release(gang.group)
        raise failure

    async def _members(self, gang: Gang) -> list[AgentRecord]:
        get = self._registrar.get
        return [await self._run(partial(get, TenantId(gang.tenant), AgentId(agent))) for agent in gang.agents]

    async def _room_for(self, gang: Gang, members: list[AgentRecord]) -> list[Any]:
        """Return where each member is to start; raises UnavailableError at once when there is no room for all."""
        taken: list[Resources] = []
        if gang.group not in self._held:
            try:
                for member in members:
                    self._nodes.require(member.spec)
                    await self._places.take_room(member.spec)
                    taken.append(member.spec.resources)
            finally:
                # From here on they are counted together, or not at all.
                for resources in taken:
                    self._room.give(resources)
            self._hold(gang.group, members)
        sizes, selectors = [m.spec.resources for m in members], [self._nodes.selector(m.spec) for m in members]
        try:
            async with self._holding:
                places = await self._run(partial(hold_group, gang.group, sizes, selectors, gang.strategy))
        except BaseException:
            await self.release(gang.group)
            raise
        if not places:
            await self.release(gang.group)
            raise UnavailableError(
                f"There is no room for all {len(members)} agents of gang {gang.gang_id} now; none of them was started.",
                hint="Retry in a moment. SOVEREIGN_NUM_CPUS and SOVEREIGN_MEMORY_BYTES say what agents share.",
                retry_after_s=1,
            )
        return places

    def _hold(self, group: str, members: list[AgentRecord]) -> None:
        held = self._held[group] = sum((m.spec.resources for m in members), Resources(0, 0))
        self._room.take(held)
