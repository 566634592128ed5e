"""The processes of agents: started once however many ask, watched until they end, ended, and found again after a restart.

The ledger (`cluster.admission.registrar`) says what may live and under which generation; this is what makes it so in Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from ray.exceptions import RayError

from actors.agent_process import DRAIN_TIMEOUT_S, AgentProcess, Key, kill_by_name
from actors.live_agents import LiveAgents
from actors.nodes import KnownNodes, nodes_of_ray
from actors.ray_actors import names
from actors.replicas import Replicas
from actors.resolved import Resolved
from actors.room import Room, account_of_ray
from actors.start_order import StartOrder
from actors.wake_queue import WakeQueue
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError, LiveRow
from cluster.agents.life import PROCESS_PREFIX
from cluster.agents.record import AgentRecord
from cluster.agents.spec import AgentSpec, Resources
from cluster.errors import (
    IllegalTransitionError,
    NotFoundError,
    SovereignError,
    StaleGenerationError,
    StorageError,
    UnavailableError,
)
from cluster.identity.grants import derive_agent_key, issue_ticket
from cluster.identity.ids import AgentId, TenantId
from cluster.settings import Settings
from cluster.telemetry.ecs_log import bind
from cluster.telemetry.metrics import Metrics
from cluster.telemetry.tracing import span

log = logging.getLogger(__name__)
T = TypeVar("T")

TICKET_TTL_S = 300.0
SETTLE_DELAY_S = 0.1
ACCOUNT_INTERVAL_S = 2.0
# While there is room, an agent that was called so lately keeps its process, and who wakes starts cold.
REBIND_IDLE_S = 30.0
# How long the calls of a replica that is no longer needed may go on; each has a deadline of its own.
RETIRE_S = 3600.0
# Starts that may wait for their turn.
WAITING_WAKES = 1024
# Between tries to record an end that the store did not take.
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 10.0


class Runner(Protocol):
    """Runs what blocks off the event loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Return what `function` returns."""
        ...


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
        self.nodes = KnownNodes()
        self.live = LiveAgents(metrics)
        self.replicas = Replicas(self.live, self, self._background)
        # Replicas whose last calls are still under way.
        self._retiring: dict[AgentProcess, asyncio.Task[None]] = {}
        self._starting: dict[Key, asyncio.Task[AgentProcess]] = {}
        # One step of an agent's life at a time; a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        # Held here because the loop itself keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    async def resolve(self, tenant: TenantId, agent: AgentId, caller: str, not_generation: int) -> list[Resolved]:
        """Return where each replica of the agent answers with a ticket for `caller`, waking the agent when it is passive.

        `not_generation` names a generation that the caller found gone; it is looked after before it is handed out again.
        Raises NotFoundError, AdmissionDeniedError, or UnavailableError when no process comes up.
        """
        key = (str(tenant), str(agent))
        for live in self.live.of(key):
            if live.generation == not_generation and not await live.status():
                await self._lost(live)
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
        async with self._lock(key):
            ending = [live for live in self.live.of(key) if self.live.take(live)]
        await self._end_all(ending, [live for live in self._retiring if live.key == key])

    async def end_on(self, node: str) -> int:
        """Drain every process on `node`, which takes no new ones any more; returns how many there were."""
        # A start from before the cordon may still arrive there; one that is later still ends when it is settled.
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        return await self.end_all("" if node == self.nodes.home else node)

    async def end_all(self, node: str | None = None) -> int:
        """Drain every process, or those on one `node`, for a stop of it; returns how many there were."""
        ending = [live for live in self.live if node in (None, live.node) and self.live.take(live)]
        retiring = [live for live in self._retiring if node in (None, live.node)]
        await self._end_all(ending, retiring)
        return len(ending) + len(retiring)

    async def _end_all(self, ending: list[AgentProcess], retiring: list[AgentProcess]) -> None:
        tasks = [self._retiring[live] for live in retiring]
        drained = (live.drain() for live in retiring)  # with less patience than they were promised
        await asyncio.gather(*map(self._passivate, ending), *drained, *tasks, return_exceptions=True)

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
        task = self._retiring[live] = asyncio.ensure_future(self._passivate(live, within_s=RETIRE_S))
        task.add_done_callback(lambda _: self._retiring.pop(live, None))

    async def recover(self) -> None:
        """Adopt what an earlier governor started, end what no record stands behind, and begin to keep account."""
        self.nodes.cordoned = await self._run(self._registrar.cordons.all)
        wanted = await self.rows_by_name()
        running = await self._run(partial(names, PROCESS_PREFIX))
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
        if key in self._starting or self._lock(key).locked():  # its row is ahead of its process, or just being put right
            return
        if live := next((x for x in self.live.of(key) if x.generation == row.generation), None):
            await self._lost(live)
            return
        log.warning("agent %s of %s has no process in generation %d", row.agent_id, row.tenant, row.generation)
        async with self._lock(key):
            await self._gone(key, row.generation, "lost")

    async def _wake(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        """Start the agent once, however many callers ask at the same time."""
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = asyncio.ensure_future(self._start(key, tenant, agent))
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start(self, key: Key, tenant: TenantId, agent: AgentId, *, more: bool = False) -> AgentProcess:
        """Start an agent that has no process, or with `more` one of its replicas, if there is room."""
        began_ns = time.monotonic_ns()
        async with self._lock(key):
            known = self.live.of(key)
            if known and not more:  # a call came while it was to give its process back
                return known[0]
            if more and known and not self._fits(known[0].spec):
                raise no_room(agent, known[0].resources)
            async with self._queue.turn(key[0]):
                live = await self._start_alone(key, tenant, agent)
        self._metrics.woken((time.monotonic_ns() - began_ns) // 1_000)
        # The caller does not wait for the record: until it is written, recovery finds the generation as `starting`.
        self._background(self._settle_start(live))
        return live

    async def _start_alone(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        with bind(tenant=tenant, agent=agent), span("start_agent", attributes={"gen_ai.agent.id": str(agent)}):
            record, generation = await self._begin(key, tenant, agent)
            order = StartOrder(self._settings, key[0], record, generation, self._registrar.egress_hosts(record))
            try:
                self.nodes.require(record.spec)
                live = await self._rebound(order) or await self._fresh(order)
            except (Exception, asyncio.CancelledError) as e:
                await self._gone(key, generation, "start_failed")
                if isinstance(e, SovereignError | asyncio.CancelledError):
                    raise
                log.exception("agent did not start")
                raise UnavailableError(
                    f"Agent {agent} did not start.",
                    hint="Retry; if it goes on, no node may have its CPU and memory free. `sovereign logs` has the reason.",
                    retry_after_s=1,
                ) from e
            self._put(live)
            return live

    async def _fresh(self, order: StartOrder) -> AgentProcess:
        """Return a process of its own, as soon as there is room for it."""
        spec, life = order.record.spec, order.record.life(order.generation)
        if life is None:
            raise StaleGenerationError(f"Generation {order.generation} of agent {spec.agent_id} is over before it began.")
        await self._take_room(spec)
        try:
            where = self.nodes.selector(spec)
            start = AgentProcess.start(order, self._agent_key(order.key, order.generation), life.process, where)
            live = await self._while_there_is_room(start)
        except BaseException:
            self._room.give(spec.resources)
            raise
        self.pool.taken()
        return live

    async def _rebound(self, order: StartOrder) -> AgentProcess | None:
        """Return the process of an idle agent of the same tenant and size, made this one; None when there is none to be had.

        A fresh process costs seconds of CPU, so this is what lets more agents be at work than there is room for.
        """
        wanted, fits = order.record.spec.resources, self._fits(order.record.spec)
        if fits and not self.pool.empty:
            return None
        idle_s = REBIND_IDLE_S if fits else 0.0
        spec, known = order.record.spec, [x for x in self.live if x.key[0] == order.tenant and x.resources == wanted]
        alike = [x for x in known if self.live.spare(x) and self.nodes.allow(spec, x.node)]
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
        lock = self._lock(other.key)
        # Nobody is waited for: whoever holds the lock may wait for the turn that we hold.
        if other not in self.live or not self.live.spare(other) or lock.locked():
            return None
        async with lock:
            if not self.live.take(other):
                return None
            became = await other.vacate()
            if became == "busy":
                other.idle_since = None
                self._put(other)
                return None
            if became == "ended":
                self._room.give(other.resources)
                await self._gone(other.key, other.generation, "drained")
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
                await self._gone(other.key, other.generation, "lost")
                raise
        try:
            live = await other.rebind(order, self._agent_key(order.key, order.generation))
        except BaseException:
            self._room.give(other.resources)
            raise
        log.info("the process of agent %s became agent %s", agent, spec.agent_id)
        return live

    async def _begin(self, key: Key, tenant: TenantId, agent: AgentId) -> tuple[AgentRecord, int]:
        """Make the agent `starting`; a row that speaks of a process which nobody here knows is put right first."""
        begin = partial(self._registrar.begin_start, tenant, agent)
        try:
            return await self._run(begin)
        except IllegalTransitionError:
            record = await self._run(partial(self._registrar.get, tenant, agent))
            known = {live.generation for live in (*self.live.of(key), *self._retiring) if live.key == key}
            for life in (x for x in record.lives if x.generation not in known):
                await self._run(partial(kill_by_name, life.process))
                await self._gone(key, life.generation, "lost")
            return await self._run(begin)

    def _fits(self, spec: AgentSpec) -> bool:
        """Return whether there is room for the agent, over all nodes and on one of those that it may be on."""
        return self._room.fits(spec.resources) and self.nodes.have_place(spec, ((x.node, x.resources) for x in self.live))

    async def _take_room(self, spec: AgentSpec) -> None:
        """Count what the agent declares as held, after ending agents that have nothing to do where it may be, if need be.

        Those idle longest go first. Raises UnavailableError at once when that is not enough.
        """
        wanted = spec.resources
        if not self._fits(spec):
            for live in await self._idle([x for x in self.live if self.live.spare(x) and self.nodes.allow(spec, x.node)]):
                # Nobody is waited for: whoever holds the lock may wait for the turn that we hold.
                if not self._lock(live.key).locked() and await self._end_idle(live) and self._fits(spec):
                    break
            if not self._fits(spec):
                raise no_room(spec.agent_id, wanted)
        self._room.take(wanted)

    async def _while_there_is_room(self, start: Awaitable[T]) -> T:
        """Return what `start` returns; give it up when a node is lost meanwhile and agents hold more than is left.

        Ray would wait for a place that does not come. Raises UnavailableError then.
        """
        starting = asyncio.ensure_future(start)
        try:
            while not (await asyncio.wait({starting}, timeout=ACCOUNT_INTERVAL_S))[0]:
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

    async def _end_idle(self, live: AgentProcess) -> bool:
        """End the process of an agent without a call; returns False, and it lives on, when one came meanwhile."""
        if live not in self.live:
            return False
        async with self._lock(live.key):
            if not self.live.spare(live) or not self.live.take(live):
                return False
            if not await live.drain(only_idle=True):
                self._put(live)
                return False
            self._room.give(live.resources)
            await self._gone(live.key, live.generation, "drained")
            return True

    async def _keep_account(self) -> None:
        """Learn what there is for agents, as long as this process lives."""
        while True:
            with contextlib.suppress(RayError, OSError):
                self._room.learn(await self._run(account_of_ray))
                self.nodes.learn(await self._run(nodes_of_ray))
            await asyncio.sleep(ACCOUNT_INTERVAL_S)

    def _lock(self, key: Key) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _settle_start(self, live: AgentProcess) -> None:
        """Record that a generation answers, and learn what is enforced on it, when its first call has had the CPU."""
        await asyncio.sleep(SETTLE_DELAY_S)
        tenant, agent = TenantId(live.key[0]), AgentId(live.key[1])
        try:
            async with self._lock(live.key):
                if live not in self.live:
                    return
                address = f"{live.host}:{live.port}"
                await self._run(partial(self._registrar.mark_live, tenant, agent, live.generation, address, live.node))
            if status := await live.status():
                live.enforcement = status["enforcement"]
            if not self.nodes.takes(live.node) and self.live.take(live):  # its node was drained while it was on its way there
                await self._passivate(live)
        except SovereignError as e:
            log.warning("generation %d of %s was not recorded as live: %s", live.generation, agent, e)

    def _background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _put(self, live: AgentProcess) -> None:
        """Add a process, or add it again: whoever watched it may have looked away while it was not there."""
        self.live.put(live)
        self._watch(live)

    def _watch(self, live: AgentProcess) -> None:
        """Notice the end of an agent's process when it happens, and take back one that nobody has called for long."""

        async def while_it_lives() -> None:
            idle_s = math.inf if live.spec.min_replicas else self._settings.idle_s
            while live in self.live:
                news = await live.watch(idle_s)
                if news == "gone":
                    await self._lost(live)
                elif news == "idle":
                    if await self._end_idle(live):
                        log.info("agent %s had no call for %g s and gave its process back", live.key[1], idle_s)
                elif news != "load":
                    return

        self._background(while_it_lives())

    async def _lost(self, live: AgentProcess) -> None:
        if self.live.take(live):
            live.kill()
            self._room.give(live.resources)
            log.warning("agent %s of %s ended by itself in generation %d", live.key[1], live.key[0], live.generation)
            async with self._lock(live.key):
                await self._gone(live.key, live.generation, "lost")

    async def _passivate(self, live: AgentProcess, *, within_s: float = DRAIN_TIMEOUT_S) -> None:
        tenant, agent = TenantId(live.key[0]), AgentId(live.key[1])
        with contextlib.suppress(SovereignError):  # one that is revoked says so already; its end is what counts
            await self._run(partial(self._registrar.mark_draining, tenant, agent, live.generation))
        await live.drain(within_s=within_s)
        self._room.give(live.resources)
        await self._gone(live.key, live.generation, "drained")

    async def _gone(self, key: Key, generation: int, reason: str) -> None:
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

    async def _adopt(self, row: LiveRow, exists: bool) -> None:
        """Take over a running agent of an earlier governor; what can't be taken over is ended, and recorded as gone.

        Also a process that was just to become this agent, or another one: it says that it is not this generation.
        """
        key, tenant, agent = (row.tenant, row.agent_id), TenantId(row.tenant), AgentId(row.agent_id)
        if exists and row.state in ("starting", "live", "draining"):
            with contextlib.suppress(ValueError):  # it ended just now
                record = await self._run(partial(self._registrar.get, tenant, agent))
                live = await self._run(partial(AgentProcess.find, row.process, key, row.generation, record.spec))
                if await live.adopt():
                    self._room.take(live.resources)
                    if row.state == "draining":
                        self._retire(live)
                        return
                    self._put(live)
                    if row.state == "starting":
                        await self._settle_start(live)
                    return
        await self._run(partial(kill_by_name, row.process))
        await self._gone(key, row.generation, "lost")

    def _agent_key(self, key: Key, generation: int) -> bytes:
        return derive_agent_key(self._master, *key, generation)


def no_room(agent: AgentId, wanted: Resources) -> UnavailableError:
    """Return the error of an agent that would have to wait for others."""
    return UnavailableError(
        f"There is no room for agent {agent} now: it declares {wanted.cpu_milli}m CPU and "
        f"{wanted.memory_bytes >> 20} MiB, and the agents that hold them are at work.",
        hint="Retry in a moment. SOVEREIGN_NUM_CPUS and SOVEREIGN_MEMORY_BYTES say what agents share.",
        retry_after_s=1,
    )
