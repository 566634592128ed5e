"""The processes of agents: started once however many ask, watched until they end, ended, and found again after a restart.

The ledger (`cluster.admission.registrar`) says what may live and under which generation; this is what makes it so in Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from ray.exceptions import RayError

from actors.agent_process import PREFIX, AgentProcess, Key, actor_name, kill_by_name
from actors.ray_actors import names
from actors.room import Room, account_of_ray
from actors.start_order import StartOrder
from actors.wake_queue import WakeQueue
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError, LiveRow
from cluster.agents.record import AgentRecord
from cluster.agents.spec import Resources
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

log = logging.getLogger(__name__)
T = TypeVar("T")

TICKET_TTL_S = 300.0
SETTLE_DELAY_S = 0.1
ACCOUNT_INTERVAL_S = 2.0
# Starts that may wait for their turn.
WAITING_WAKES = 1024
# Between tries to record an end that the store did not take.
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 10.0


class Runner(Protocol):
    """Runs what blocks off the event loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Return what `function` returns."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where an agent answers, and the session under which it may be called; secret, never logged."""

    host: str
    port: int
    generation: int
    ticket: bytes
    session_key: bytes
    expires_us: int

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {
            "host": self.host,
            "port": self.port,
            "generation": self.generation,
            "ticket": self.ticket.hex(),
            "session_key": self.session_key.hex(),
            "expires_us": self.expires_us,
        }

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Resolved:
        """Return what `to_json` wrote."""
        return cls(**(d | {"ticket": bytes.fromhex(d["ticket"]), "session_key": bytes.fromhex(d["session_key"])}))


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
        self.live: dict[Key, AgentProcess] = {}
        self._starting: dict[Key, asyncio.Task[AgentProcess]] = {}
        # One step of an agent's life at a time; a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        # Held here because the loop itself keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    async def resolve(self, tenant: TenantId, agent: AgentId, caller: str, not_generation: int) -> Resolved:
        """Return where the agent answers and a ticket for `caller`, waking the agent when it is passive.

        `not_generation` names a generation that the caller found gone; it is looked after before it is handed out again.
        Raises NotFoundError, AdmissionDeniedError, or UnavailableError when no process comes up.
        """
        key = (str(tenant), str(agent))
        live = self.live.get(key)
        if live is not None and live.generation == not_generation and not await live.status():
            await self._lost(key, live)
            live = None
        if live is None:
            live = await self._wake(key, tenant, agent)
        grant = issue_ticket(
            self._agent_key(key, live.generation),
            caller=caller,
            tenant=tenant,
            agent=agent,
            generation=live.generation,
            ttl_s=TICKET_TTL_S,
        )
        return Resolved(live.host, live.port, live.generation, grant.ticket_bytes, grant.session_key, grant.ticket.expires_us)

    async def end(self, tenant: TenantId, agent: AgentId) -> None:
        """Drain the agent's process, if it has one, and record that it is gone."""
        key = (str(tenant), str(agent))
        if (starting := self._starting.get(key)) is not None:
            await asyncio.gather(starting, return_exceptions=True)
        if (live := self.live.get(key)) is not None and self._drop(key, live):
            await self._passivate(key, live)

    async def end_all(self) -> int:
        """Drain every process, for a stop of the node; returns how many there were."""
        ending = [(key, live) for key, live in list(self.live.items()) if self._drop(key, live)]
        await asyncio.gather(*(self._passivate(key, live) for key, live in ending), return_exceptions=True)
        return len(ending)

    async def recover(self) -> None:
        """Adopt what an earlier governor started, end what no record stands behind, and begin to keep account."""
        wanted = await self.rows_by_name()
        running = await self._run(partial(names, PREFIX))
        for name in running - wanted.keys():
            log.warning("ending %s: no record stands behind it", name)
            await self._run(partial(kill_by_name, name))
        adopted = (self._adopt(row, name in running) for name, row in wanted.items())
        for row, failure in zip(wanted.values(), await asyncio.gather(*adopted, return_exceptions=True), strict=True):
            if failure is not None:  # its next caller finds it unknown here, and has it put right
                log.error("agent %s of %s was not taken over: %s", row.agent_id, row.tenant, failure)
        self._background(self._keep_account())

    async def rows_by_name(self) -> dict[str, LiveRow]:
        """Return the names that actors of agents may have now, each with the row behind it."""
        rows = await self._run(self._registrar.live_rows)
        return {actor_name((r.tenant, r.agent_id), r.generation): r for r in rows}

    async def put_right(self, row: LiveRow) -> None:
        """Record that an agent's process is gone, of which nobody here knows better: its next call starts it anew."""
        key = (row.tenant, row.agent_id)
        if key in self._starting or self._lock(key).locked():  # its row is ahead of its actor, or just being put right
            return
        live = self.live.get(key)
        if live is not None and live.generation == row.generation:
            await self._lost(key, live)
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

    async def _start(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        began_ns = time.monotonic_ns()
        async with self._lock(key):
            if (live := self.live.get(key)) is not None:  # a call came while it was to give its process back
                return live
            async with self._queue.turn(key[0]):
                live = await self._start_alone(key, tenant, agent)
        self._metrics.woken((time.monotonic_ns() - began_ns) // 1_000)
        self.pool.taken()
        # The caller does not wait for the record: until it is written, recovery finds the generation as `starting`.
        self._background(self._settle_start(key, live))
        return live

    async def _start_alone(self, key: Key, tenant: TenantId, agent: AgentId) -> AgentProcess:
        with bind(tenant=tenant, agent=agent):
            record, generation = await self._begin(key, tenant, agent)
            resources = record.spec.resources
            order = StartOrder(self._settings, key[0], record, generation, self._registrar.egress_hosts(record))
            try:
                await self._take_room(agent, resources)
            except UnavailableError:
                await self._gone(key, generation, "start_failed")
                raise
            try:
                live = await AgentProcess.start(order, self._agent_key(key, generation))
            except (Exception, asyncio.CancelledError) as e:
                self._room.give(resources)
                await self._gone(key, generation, "start_failed")
                if isinstance(e, SovereignError | asyncio.CancelledError):
                    raise
                log.exception("agent did not start")
                raise UnavailableError(
                    f"Agent {agent} did not start.",
                    hint="Retry; if it goes on, no node may have its CPU and memory free. `sovereign logs` has the reason.",
                    retry_after_s=1,
                ) from e
            self._put(key, live)
            return live

    async def _begin(self, key: Key, tenant: TenantId, agent: AgentId) -> tuple[AgentRecord, int]:
        """Make the agent `starting`; a row that speaks of a process which nobody here knows is put right first."""
        begin = partial(self._registrar.begin_start, tenant, agent)
        try:
            return await self._run(begin)
        except IllegalTransitionError:
            record = await self._run(partial(self._registrar.get, tenant, agent))
            await self._run(partial(kill_by_name, actor_name(key, record.generation)))
            await self._gone(key, record.generation, "lost")
            return await self._run(begin)

    async def _take_room(self, agent: AgentId, wanted: Resources) -> None:
        """Count `wanted` as held, after ending agents that have nothing to do if need be; those idle longest go first.

        Raises UnavailableError at once when that is not enough.
        """
        if not self._room.fits(wanted):
            for key, live in await self._idle():
                if await self._end_idle(key, live) and self._room.fits(wanted):
                    break
            if not self._room.fits(wanted):
                raise UnavailableError(
                    f"There is no room for agent {agent} now: it declares {wanted.cpu_milli}m CPU and "
                    f"{wanted.memory_bytes >> 20} MiB, and the agents that hold them are at work.",
                    hint="Retry in a moment. SOVEREIGN_NUM_CPUS and SOVEREIGN_MEMORY_BYTES say what agents share.",
                    retry_after_s=1,
                )
        self._room.take(wanted)

    async def _idle(self) -> list[tuple[Key, AgentProcess]]:
        """Return the agents without a call, those that have been so for longest first."""
        known = list(self.live.items())
        said = await asyncio.gather(*(live.status() for _, live in known))
        idle = [(status["idle_s"], key, live) for (key, live), status in zip(known, said, strict=True) if status]
        return [(key, live) for idle_s, key, live in sorted(idle, key=lambda x: -x[0]) if idle_s > 0]

    async def _end_idle(self, key: Key, live: AgentProcess) -> bool:
        """End the process of an agent without a call; returns False, and it lives on, when one came meanwhile."""
        if self.live.get(key) is not live:  # nor wait for its lock: who starts it anew may wait for the turn that we hold
            return False
        async with self._lock(key):
            if not self._drop(key, live):
                return False
            if not await live.drain(only_idle=True):
                self.live[key] = live
                self._metrics.live_agents(len(self.live))
                return False
            self._room.give(live.resources)
            await self._gone(key, live.generation, "drained")
            return True

    async def _keep_account(self) -> None:
        """Learn what there is for agents, as long as this process lives."""
        while True:
            with contextlib.suppress(RayError, OSError):
                self._room.learn(await self._run(account_of_ray))
            await asyncio.sleep(ACCOUNT_INTERVAL_S)

    def _lock(self, key: Key) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _settle_start(self, key: Key, live: AgentProcess) -> None:
        """Record that a generation answers, and learn what is enforced on it, when its first call has had the CPU."""
        await asyncio.sleep(SETTLE_DELAY_S)
        tenant, agent = TenantId(key[0]), AgentId(key[1])
        try:
            async with self._lock(key):
                await self._run(partial(self._registrar.mark_live, tenant, agent, live.generation, f"{live.host}:{live.port}"))
            if status := await live.status():
                live.enforcement = status["enforcement"]
        except SovereignError as e:
            log.warning("generation %d of %s was not recorded as live: %s", live.generation, agent, e)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _put(self, key: Key, live: AgentProcess) -> None:
        self.live[key] = live
        self._metrics.live_agents(len(self.live))
        self._watch(key, live)

    def _drop(self, key: Key, live: AgentProcess) -> bool:
        """Forget `live`; returns whether it was known, so that only one of those who notice its end acts on it."""
        if self.live.get(key) is not live:
            return False
        del self.live[key]
        self._metrics.live_agents(len(self.live))
        return True

    def _watch(self, key: Key, live: AgentProcess) -> None:
        """Notice the end of an agent's process when it happens, and take back one that nobody has called for long."""

        async def while_it_lives() -> None:
            while self.live.get(key) is live:
                said = await live.watch(self._settings.idle_s)
                if said == "gone":
                    await self._lost(key, live)
                if said != "idle":
                    return
                if await self._end_idle(key, live):
                    log.info(
                        "agent %s of %s had no call for %g s and gave its process back", key[1], key[0], self._settings.idle_s
                    )

        self._background(while_it_lives())

    async def _lost(self, key: Key, live: AgentProcess) -> None:
        if self._drop(key, live):
            live.kill()
            self._room.give(live.resources)
            log.warning("agent %s of %s ended by itself in generation %d", key[1], key[0], live.generation)
            async with self._lock(key):
                await self._gone(key, live.generation, "lost")

    async def _passivate(self, key: Key, live: AgentProcess) -> None:
        with contextlib.suppress(SovereignError):  # one that is revoked says so already; its end is what counts
            await self._run(partial(self._registrar.mark_draining, TenantId(key[0]), AgentId(key[1]), live.generation))
        await live.drain()
        self._room.give(live.resources)
        await self._gone(key, live.generation, "drained")

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
        """Take over a running agent of an earlier governor; what can't be taken over is ended, and recorded as gone."""
        key, tenant, agent = (row.tenant, row.agent_id), TenantId(row.tenant), AgentId(row.agent_id)
        if exists and row.state in ("starting", "live"):
            with contextlib.suppress(ValueError):  # it ended just now
                record = await self._run(partial(self._registrar.get, tenant, agent))
                live = await self._run(partial(AgentProcess.find, key, row.generation, record.spec.resources))
                if await live.adopt():
                    self._room.take(live.resources)
                    if row.state == "starting":
                        await self._settle_start(key, live)
                    self._put(key, live)
                    return
        await self._run(partial(kill_by_name, actor_name(key, row.generation)))
        await self._gone(key, row.generation, "lost")

    def _agent_key(self, key: Key, generation: int) -> bytes:
        return derive_agent_key(self._master, *key, generation)
