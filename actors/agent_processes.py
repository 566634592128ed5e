"""The processes of agents: started once however many ask, ended, and found again after a restart.

The ledger (`cluster.admission.registrar`) says what may live and under which generation; this is what makes it so in Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial

from ray.exceptions import RayError

from actors.agent_process import DRAIN_TIMEOUT_S, AgentProcess, Key, kill_by_name
from actors.background import Background, Runner
from actors.gangs import Gangs
from actors.live_agents import LiveAgents
from actors.lives import Lives
from actors.nodes import KnownNodes, nodes_of_ray
from actors.places import Places, no_room
from actors.ray_actors import names
from actors.replicas import Replicas
from actors.resolved import Resolved
from actors.room import Room, account_of_ray
from actors.start_order import StartOrder
from actors.wake_queue import WakeQueue
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.admission.registry import LiveRow
from cluster.agents.gang import Gang
from cluster.agents.life import PROCESS_PREFIX
from cluster.agents.record import AgentRecord
from cluster.errors import (
    IllegalTransitionError,
    NotFoundError,
    SovereignError,
    StaleGenerationError,
    UnavailableError,
)
from cluster.identity.grants import derive_agent_key, issue_ticket
from cluster.identity.ids import AgentId, TenantId
from cluster.settings import Settings
from cluster.telemetry.ecs_log import bind
from cluster.telemetry.metrics import Metrics
from cluster.telemetry.tracing import span

log = logging.getLogger(__name__)

TICKET_TTL_S = 300.0
SETTLE_DELAY_S = 0.1
ACCOUNT_INTERVAL_S = 2.0
# How long the calls of a replica that is no longer needed may go on; each has a deadline of its own.
RETIRE_S = 3600.0
# Starts that may wait for their turn.
WAITING_WAKES = 1024


class AgentProcesses:
    """Every live agent by tenant and id. For one event loop; its death loses nothing that `recover` does not find."""

    def __init__(self, settings: Settings, registrar: Registrar, metrics: Metrics, run: Runner) -> None:
        self._settings = settings
        self._registrar = registrar
        self._metrics = metrics
        self._run = run
        self._master = bytes.fromhex((settings.secret_dir / "master-key").read_text())
        self.pool = WarmPool(settings.warm_pool, metrics)
        self._queue = WakeQueue(at_once=settings.wakes_at_once, waiting=WAITING_WAKES)
        self._room = Room()
        self._background = Background()
        self.nodes = KnownNodes()
        self.live = LiveAgents(metrics)
        self._lives = Lives(
            self.live, self._room, registrar=registrar, run=run, background=self._background, idle_s=settings.idle_s
        )
        self._places = Places(self._lives, self.nodes, self.pool, registrar=registrar, run=run, agent_key=self._agent_key)
        self.gangs = Gangs(
            self.live,
            self.nodes,
            self._room,
            self._places,
            registrar=registrar,
            run=run,
            start=self._start_member,
            end=lambda ending: self._end_all(ending, []),
        )
        self.replicas = Replicas(self.live, self, self._background)
        # Replicas whose last calls are still under way.
        self._retiring: dict[AgentProcess, asyncio.Task[None]] = {}
        # Those that are to end soon, for a stop or of a node that is drained.
        self._ending: dict[AgentProcess, asyncio.Task[None]] = {}
        self._starting: dict[Key, asyncio.Task[AgentProcess]] = {}

    async def resolve(self, tenant: TenantId, agent: AgentId, caller: str, not_generation: int) -> list[Resolved]:
        """Return where each replica of the agent answers with a ticket for `caller`, waking the agent when it is passive.

        `not_generation` names a generation that the caller found gone; it is looked after before it is handed out again.
        Raises NotFoundError, AdmissionDeniedError, or UnavailableError when no process comes up.
        """
        key = (str(tenant), str(agent))
        for live in self.live.of(key):
            if live.generation == not_generation and not await live.status():
                await self._lives.lost(live)
        return [self._resolved(live, caller) for live in self.live.of(key) or [await self._wake(key, tenant, agent)]]

    def _resolved(self, live: AgentProcess, caller: str) -> Resolved:
        tenant, agent = live.key
        grant = issue_ticket(
            self._agent_key(live.key, live.generation),
            caller=caller,
            tenant=tenant,
            agent=agent,
            generation=live.generation,
            ttl_s=TICKET_TTL_S,
        )
        return Resolved(
            live.host,
            live.port,
            live.generation,
            grant.ticket_bytes,
            grant.session_key,
            grant.ticket.expires_us,
            alone=live.spec.max_replicas == 1,
        )

    async def end(self, tenant: TenantId, agent: AgentId) -> None:
        """Drain the agent's processes, if it has any, and record that they are gone; for one that does not wake any more."""
        key = (str(tenant), str(agent))
        self.replicas.forget(key)
        # Whoever starts it, ends it or gives its process to another agent has done so then.
        async with self._lives.lock(key):
            ending = [live for live in self.live.of(key) if self.live.take(live)]
        await self._end_all(ending, [live for live in self._retiring if live.key == key])

    async def replace(self, record: AgentRecord) -> None:
        """Drain the processes of an agent's earlier spec: whoever calls meanwhile waits, and finds the one of `record`."""
        key = (str(record.tenant), str(record.spec.agent_id))
        self.replicas.forget(key)
        async with self._lives.lock(key):
            ending = [live for live in self.live.of(key) if live.generation <= record.generation and self.live.take(live)]
            await self._end_all(ending, [live for live in self._retiring if live.key == key])
        self.replicas.keep(key, record.spec)

    async def remove_gang(self, gang: Gang) -> None:
        """End all members of a gang that do not wake any more, and give their room back."""
        tenant = TenantId(gang.tenant)
        await asyncio.gather(*(self.end(tenant, AgentId(agent)) for agent in gang.agents))
        await self.gangs.release(gang.group)

    async def end_on(self, node: str) -> int:
        """Drain every process on `node`, which takes no new ones any more; returns how many there were."""
        # A start from before the cordon may still arrive there; one that is later still ends when it is settled.
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        place = "" if node == self.nodes.home else node
        gangs = {(live.key[0], live.gang) for live in self.live if live.gang and live.node == place}
        ended = await self.end_all(place)
        await self.gangs.end_of(gangs)
        return ended

    async def renew(self, within_s: float) -> int:
        """End every process that there is now, one after the other: the next call of its agent starts a new one.

        One without calls ends at once; another takes no new ones, which wait, and ends with its last or after `within_s`.
        Returns how many there were.
        """
        # By name, which a process keeps when it becomes another agent's.
        old = {live.name for live in self.live}
        while live := next((x for x in self.live if x.name in old), None):
            if live.gang:
                gang, place = (live.key[0], live.gang), [x for x in self.live if x.gang == live.gang and x.key[0] == live.key[0]]
                await asyncio.gather(*(self._end_soon(x, within_s) for x in place if self.live.take(x)))
                await self.gangs.end_of({gang})
            elif not await self._lives.end_idle(live) and self.live.take(live):
                await self._end_soon(live, within_s)
        return len(old)

    async def end_all(self, node: str | None = None) -> int:
        """Drain every process, or those on one `node`, for a stop of it; returns how many there were."""
        ending = [live for live in self.live if node in (None, live.node) and self.live.take(live)]
        retiring = [live for live in self._retiring if node in (None, live.node)]
        await self._end_all(ending, retiring)
        return len(ending) + len(retiring)

    async def _end_all(self, ending: list[AgentProcess], retiring: list[AgentProcess]) -> None:
        tasks = [self._retiring[live] for live in retiring]
        drained = (live.drain() for live in retiring)  # with less patience than they were promised
        await asyncio.gather(*map(self._end_soon, ending), *drained, *tasks, return_exceptions=True)

    def _end_soon(self, live: AgentProcess, within_s: float = DRAIN_TIMEOUT_S) -> asyncio.Task[None]:
        """Begin to end a process that was taken out, which is known here until it has ended."""
        task = self._ending[live] = asyncio.ensure_future(self._lives.passivate(live, within_s=within_s))
        task.add_done_callback(lambda _: self._ending.pop(live, None))
        return task

    async def add_replica(self, key: Key) -> None:
        """Start one more replica, or an agent's first one.

        Raises UnavailableError without room, NotFoundError when the agent is gone, AdmissionDeniedError.
        """
        tenant, agent = TenantId(key[0]), AgentId(key[1])
        if self.live.of(key):
            await self._start(key, tenant, agent, more=True)
        else:
            await self._wake(key, tenant, agent)

    async def retire(self, live: AgentProcess) -> None:
        """Begin to end a replica: it takes no new calls, and ends when those under way have ended."""
        if self.live.take(live):
            self._retire(live)

    def _retire(self, live: AgentProcess) -> None:
        task = self._retiring[live] = asyncio.ensure_future(self._lives.passivate(live, within_s=RETIRE_S))
        task.add_done_callback(lambda _: self._retiring.pop(live, None))

    async def recover(self) -> None:
        """Adopt what an earlier governor started, end what no record stands behind, and begin to keep account."""
        self.nodes.cordoned = await self._run(self._registrar.cordons.all)
        if self.nodes.cordoned:
            with contextlib.suppress(RayError, OSError):  # which of them is the head's own
                self.nodes.learn(await self._run(nodes_of_ray))
        wanted = await self.rows_by_name()
        running = await self._run(partial(names, PROCESS_PREFIX))
        await self.gangs.recover()
        for name in running - wanted.keys():
            log.warning("ending %s: no record stands behind it", name)
            await self._run(partial(kill_by_name, name))
        adopted = (self._adopt(row, name in running) for name, row in wanted.items())
        for row, failure in zip(wanted.values(), await asyncio.gather(*adopted, return_exceptions=True), strict=True):
            if failure is not None:  # its next caller finds it unknown here, and has it put right
                log.error("agent %s of %s was not taken over: %s", row.agent_id, row.tenant, failure)
        for tenant, agent in await self._run(self._registrar.kept):
            with contextlib.suppress(NotFoundError):
                record = await self._run(partial(self._registrar.get, tenant, agent))
                self.replicas.keep((tenant, agent), record.spec)
        self._background(self._keep_account())
        self._background(self.replicas.run())

    async def rows_by_name(self) -> dict[str, LiveRow]:
        """Return the names that actors of agents may have now, each with the row behind it."""
        rows = await self._run(self._registrar.live_rows)
        return {r.process: r for r in rows}

    async def put_right(self, row: LiveRow) -> None:
        """Record that an agent's process is gone, of which nobody here knows better: its next call starts it anew."""
        key = (row.tenant, row.agent_id)
        if key in self._starting or self._lives.lock(key).locked():  # its row is ahead of its process, or just being put right
            return
        if live := next((x for x in self.live.of(key) if x.generation == row.generation), None):
            await self._lives.lost(live)
            return
        log.warning("agent %s of %s has no process in generation %d", row.agent_id, row.tenant, row.generation)
        async with self._lives.lock(key):
            await self._lives.ended(key, row.generation, "lost")

    async def _wake(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        """Start the agent once, however many callers ask at the same time."""
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = asyncio.ensure_future(self._start_with_gang(key, tenant, agent))
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start_with_gang(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        """Start an agent, and all others of its gang if it belongs to one."""
        record = await self._run(partial(self._registrar.get, tenant, agent))
        if not record.gang:
            return await self._start(key, tenant, agent)
        await self.gangs.start(record)
        if not (live := self.live.of(key)):
            raise UnavailableError(f"Agent {agent} ended as soon as it had started.", hint="Retry in a moment.", retry_after_s=1)
        return live[0]

    async def _start_member(self, key: Key, place: object) -> AgentProcess:
        """Start one member of a gang at its place, unless it runs."""
        return await self._start(key, TenantId(key[0]), AgentId(key[1]), place=place)

    async def _start(
        self, key: Key, tenant: TenantId, agent: AgentId, *, more: bool = False, place: object | None = None
    ) -> AgentProcess:
        """Start an agent that has no process, or with `more` one of its replicas, if there is room, or at its `place`."""
        began_ns = time.monotonic_ns()
        async with self._lives.lock(key):
            known = self.live.of(key)
            if known and not more:  # a call came while it was to give its process back
                return known[0]
            if more and known and not self._places.fits(known[0].spec):
                raise no_room(agent, known[0].resources)
            ending = [live for live in self._ending if live.key == key]
            if ending and len(known) + len(ending) >= ending[0].spec.max_replicas:
                await asyncio.wait([self._ending[live] for live in ending])  # as long as a drain takes, and without a turn
            async with self._queue.turn(key[0]):
                live = await self._start_alone(key, tenant, agent, place)
        self._metrics.woken((time.monotonic_ns() - began_ns) // 1_000)
        # The caller does not wait for the record: until it is written, recovery finds the generation as `starting`.
        self._background(self._settle_start(live))
        return live

    async def _start_alone(self, key: Key, tenant: TenantId, agent: AgentId, place: object | None) -> AgentProcess:
        with bind(tenant=tenant, agent=agent), span("start_agent", attributes={"gen_ai.agent.id": str(agent)}):
            record, generation = await self._begin(key, tenant, agent)
            order = StartOrder(
                self._settings, key[0], record, generation, self._registrar.egress_hosts(record), self._registrar.price_of(record)
            )
            try:
                if place is None:
                    self.nodes.require(record.spec)
                    live = await self._places.take_idle(order) or await self._fresh(order)
                else:
                    live = await self._process(order, place)
            except (Exception, asyncio.CancelledError) as e:
                await self._lives.ended(key, generation, "start_failed")
                if isinstance(e, SovereignError | asyncio.CancelledError):
                    raise
                log.exception("agent did not start")
                raise UnavailableError(
                    f"Agent {agent} did not start.",
                    hint="Retry; if it goes on, no node may have its CPU and memory free. `sovereign logs` has the reason.",
                    retry_after_s=1,
                ) from e
            self._lives.put(live)
            return live

    async def _fresh(self, order: StartOrder) -> AgentProcess:
        """Return a process of its own, as soon as there is room for it."""
        spec = order.record.spec
        await self._places.take_room(spec)
        try:
            return await self._places.while_there_is_room(self._process(order))
        except BaseException:
            self._room.give(spec.resources)
            raise

    async def _process(self, order: StartOrder, place: object | None = None) -> AgentProcess:
        """Return a process that is the agent of `order`, at its `place` or where there is one."""
        spec, life = order.record.spec, order.record.life(order.generation)
        if life is None:
            raise StaleGenerationError(f"Generation {order.generation} of agent {spec.agent_id} is over before it began.")
        where = self.nodes.selector(spec)
        live = await AgentProcess.start(order, self._agent_key(order.key, order.generation), life.process, where, place)
        self.pool.taken()
        return live

    async def _begin(self, key: Key, tenant: TenantId, agent: AgentId) -> tuple[AgentRecord, int]:
        """Make the agent `starting`; a row that speaks of a process which nobody here knows is put right first.

        Raises UnavailableError while processes that end have all the places that it has.
        """
        begin = partial(self._registrar.begin_start, tenant, agent)
        try:
            return await self._run(begin)
        except IllegalTransitionError:
            record = await self._run(partial(self._registrar.get, tenant, agent))
            here = (*self.live.of(key), *self._retiring, *self._ending)
            known = {live.generation for live in here if live.key == key}
            for life in (x for x in record.lives if x.generation not in known):
                await self._run(partial(kill_by_name, life.process))
                await self._lives.ended(key, life.generation, "lost")
            try:
                return await self._run(begin)
            except IllegalTransitionError as e:
                raise UnavailableError(
                    f"Agent {agent} is about to give its process back, which waits for its last calls.",
                    hint="Retry in a moment; it starts anew then.",
                    retry_after_s=1,
                ) from e

    async def _keep_account(self) -> None:
        """Learn what there is for agents, as long as this process lives."""
        while True:
            with contextlib.suppress(RayError, OSError):
                self._room.learn(await self._run(account_of_ray))
                self.nodes.learn(await self._run(nodes_of_ray))
            await asyncio.sleep(ACCOUNT_INTERVAL_S)

    async def _settle_start(self, live: AgentProcess) -> None:
        """Record that a generation answers, and learn what is enforced on it, when its first call has had the CPU."""
        await asyncio.sleep(SETTLE_DELAY_S)
        tenant, agent = TenantId(live.key[0]), AgentId(live.key[1])
        try:
            async with self._lives.lock(live.key):
                if live not in self.live:
                    return
                address = f"{live.host}:{live.port}"
                await self._run(partial(self._registrar.mark_live, tenant, agent, live.generation, address, live.node))
            if status := await live.status():
                live.enforcement = status["enforcement"]
            stays = self.nodes.takes(live.node) and await self._run(
                partial(self._registrar.may_stay, tenant, agent, live.generation)
            )
            if not stays and self.live.take(live):  # its node was drained, or the policy changed, while it was on its way
                await self._end_soon(live)
        except SovereignError as e:
            log.warning("generation %d of %s was not recorded as live: %s", live.generation, agent, e)

    async def _adopt(self, row: LiveRow, exists: bool) -> None:
        """Take over a running agent of an earlier governor; what can't be taken over is ended, and recorded as gone.

        Also a process that was just to become this agent, or another one: it says that it is not this generation.
        """
        key, tenant, agent = (row.tenant, row.agent_id), TenantId(row.tenant), AgentId(row.agent_id)
        # One that runs an earlier spec was to be ended.
        if exists and not row.outdated and row.state in ("starting", "live", "draining"):
            with contextlib.suppress(ValueError):  # it ended just now
                record = await self._run(partial(self._registrar.get, tenant, agent))
                live = await self._run(partial(AgentProcess.find, row.process, key, row.generation, record.spec, record.gang))
                if await live.adopt():
                    self._room.take(live.resources)
                    # Also when the governor that drained its node died before it came to this one.
                    if row.state == "draining" or not self.nodes.takes(live.node):
                        self._retire(live)
                        return
                    self._lives.put(live)
                    if row.state == "starting":
                        await self._settle_start(live)
                    return
        await self._run(partial(kill_by_name, row.process))
        await self._lives.ended(key, row.generation, "lost")

    def _agent_key(self, key: Key, generation: int) -> bytes:
        return derive_agent_key(self._master, *key, generation)
