"""The processes of agents: started once however many ask, watched until they end, ended, and found again after a restart.

The ledger (`cluster.admission.registrar`) says what may live and under which generation; this is what makes it so in Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from ray.exceptions import RayError

from actors.agent import AgentActor
from actors.ray_actors import Handle, create, find, kill, names
from actors.start_order import StartOrder
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError, LiveRow
from cluster.agents.record import AgentRecord
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
# Tenant and agent id.
Key = tuple[str, str]

TICKET_TTL_S = 300.0
START_TIMEOUT_S = 20.0
STATUS_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
SETTLE_DELAY_S = 0.1
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


@dataclass(slots=True)
class Live:
    """One generation that answers, as this process knows it."""

    handle: Handle
    host: str
    port: int
    generation: int
    # What is enforced on it; None until it said so.
    enforcement: dict[str, Any] | None = None


class AgentProcesses:
    """Every live agent by tenant and id. For one event loop; its death loses nothing that `recover` does not find."""

    def __init__(self, settings: Settings, registrar: Registrar, metrics: Metrics, run: Runner) -> None:
        self._settings = settings
        self._registrar = registrar
        self._metrics = metrics
        self._run = run
        self._master = bytes.fromhex((settings.secret_dir / "master-key").read_text())
        self.pool = WarmPool(settings.warm_pool, metrics)
        self.live: dict[Key, Live] = {}
        self._starting: dict[Key, asyncio.Task[Live]] = {}
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
        if live is not None and live.generation == not_generation and not await self._answers(live):
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
        """Adopt what an earlier governor started, and end what no record stands behind."""
        rows = await self._run(self._registrar.live_rows)
        wanted = {actor_name((r.tenant, r.agent_id), r.generation): r for r in rows}
        running = await self._run(partial(names, "agent:"))
        for name in running - wanted.keys():
            log.warning("ending %s: no record stands behind it", name)
            await self._kill_by_name(name)
        adopted = (self._adopt(row, name in running) for name, row in wanted.items())
        for row, failure in zip(rows, await asyncio.gather(*adopted, return_exceptions=True), strict=True):
            if failure is not None:  # its next caller finds it unknown here, and has it put right
                log.error("agent %s of %s was not taken over: %s", row.agent_id, row.tenant, failure)

    async def _wake(self, key: Key, tenant: TenantId, agent: AgentId) -> Live:
        """Start the agent once, however many callers ask at the same time."""
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = asyncio.ensure_future(self._start(key, tenant, agent))
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start(self, key: Key, tenant: TenantId, agent: AgentId) -> Live:
        began_ns = time.monotonic_ns()
        async with self._lock(key):
            live = await self._start_alone(key, tenant, agent)
        self._metrics.woken((time.monotonic_ns() - began_ns) // 1_000)
        self.pool.taken()
        # The caller does not wait for the record: until it is written, recovery finds the generation as `starting`.
        self._background(self._settle_start(key, live))
        return live

    async def _start_alone(self, key: Key, tenant: TenantId, agent: AgentId) -> Live:
        with bind(tenant=tenant, agent=agent):
            record, generation = await self._begin(key, tenant, agent)
            handle: Handle | None = None
            try:
                handle = self._create(key, record, generation)
                start = handle.start.remote(self._agent_key(key, generation))
                status = json.loads(await asyncio.wait_for(start, START_TIMEOUT_S))
                live = Live(handle, status["host"], status["port"], generation)
            except (Exception, asyncio.CancelledError) as e:
                if handle is not None:
                    kill(handle)
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
            await self._kill_by_name(actor_name(key, record.generation))
            await self._gone(key, record.generation, "lost")
            return await self._run(begin)

    async def _kill_by_name(self, name: str) -> None:
        with contextlib.suppress(ValueError):  # there is none
            kill(await self._run(partial(find, name)))

    def _lock(self, key: Key) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _settle_start(self, key: Key, live: Live) -> None:
        """Record that a generation answers, and learn what is enforced on it, when its first call has had the CPU."""
        await asyncio.sleep(SETTLE_DELAY_S)
        tenant, agent = TenantId(key[0]), AgentId(key[1])
        try:
            async with self._lock(key):
                await self._run(partial(self._registrar.mark_live, tenant, agent, live.generation, f"{live.host}:{live.port}"))
            live.enforcement = json.loads(await live.handle.status.remote())["enforcement"]
        except (SovereignError, RayError) as e:
            log.warning("generation %d of %s was not recorded as live: %s", live.generation, agent, e)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _create(self, key: Key, record: AgentRecord, generation: int) -> Handle:
        resources = record.spec.resources
        order = StartOrder(self._settings, key[0], record, generation, self._registrar.egress_hosts(record))
        # The generation in the name keeps a killed actor's name from ever leading to a later one.
        return create(
            AgentActor,
            order.to_bytes(),
            name=actor_name(key, generation),
            cpus=resources.cpu_milli / 1000,
            memory_bytes=resources.memory_bytes,
            restarts=False,  # only governance revives
            concurrency=16,
            get_if_exists=False,
        )

    def _put(self, key: Key, live: Live) -> None:
        self.live[key] = live
        self._metrics.live_agents(len(self.live))
        self._watch(key, live)

    def _drop(self, key: Key, live: Live) -> bool:
        """Forget `live`; returns whether it was known, so that only one of those who notice its end acts on it."""
        if self.live.get(key) is not live:
            return False
        del self.live[key]
        self._metrics.live_agents(len(self.live))
        return True

    def _watch(self, key: Key, live: Live) -> None:
        """Notice the end of an agent's process when it happens, not when the next caller trips over it."""

        async def until_it_ends() -> None:
            with contextlib.suppress(RayError):
                await live.handle.lives.remote()
                return  # a later governor watches it now
            await self._lost(key, live)

        self._background(until_it_ends())

    async def _answers(self, live: Live) -> bool:
        try:
            await asyncio.wait_for(live.handle.status.remote(), STATUS_TIMEOUT_S)
        except (RayError, TimeoutError):
            return False
        return True

    async def _lost(self, key: Key, live: Live) -> None:
        if self._drop(key, live):
            kill(live.handle)
            log.warning("agent %s of %s ended by itself in generation %d", key[1], key[0], live.generation)
            async with self._lock(key):
                await self._gone(key, live.generation, "lost")

    async def _passivate(self, key: Key, live: Live) -> None:
        with contextlib.suppress(SovereignError):  # one that is revoked says so already; its end is what counts
            await self._run(partial(self._registrar.mark_draining, TenantId(key[0]), AgentId(key[1]), live.generation))
        await self._drain(live)
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

    async def _drain(self, live: Live) -> None:
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(live.handle.drain.remote(DRAIN_TIMEOUT_S), DRAIN_TIMEOUT_S + 2)
            return
        kill(live.handle)

    async def _adopt(self, row: LiveRow, exists: bool) -> None:
        """Take over a running agent of an earlier governor; what can't be taken over is ended, and recorded as gone."""
        key = (row.tenant, row.agent_id)
        if exists and row.state in ("starting", "live") and (live := await self._find_live(key, row.generation)):
            if row.state == "starting":
                await self._settle_start(key, live)
            self._put(key, live)
            return
        await self._kill_by_name(actor_name(key, row.generation))
        await self._gone(key, row.generation, "lost")

    async def _find_live(self, key: Key, generation: int) -> Live | None:
        """Return the running generation, or None when it does not say within STATUS_TIMEOUT_S that it answers."""
        with contextlib.suppress(ValueError, RayError, TimeoutError):
            handle = await self._run(partial(find, actor_name(key, generation)))
            status = json.loads(await asyncio.wait_for(handle.status.remote(), STATUS_TIMEOUT_S))
            if status["state"] == "live":
                return Live(handle, status["host"], status["port"], generation, status["enforcement"])
        return None

    def _agent_key(self, key: Key, generation: int) -> bytes:
        return derive_agent_key(self._master, *key, generation)


def actor_name(key: Key, generation: int) -> str:
    """Return the Ray name of one generation of an agent."""
    return f"agent:{key[0]}:{key[1]}:g{generation}"
