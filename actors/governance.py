"""The governance actor: the only one that lets an agent exist, wakes it, and takes it away.

Decisions and records are `cluster.admission.registrar`'s; this shell runs them off the event loop, creates the Ray
actors, and answers in JSON bytes (`{"ok": …}` or `{"problem": …}`), so that no exception has to cross by pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ray.exceptions import RayError

from actors.agent import AgentActor
from actors.ray_actors import Handle, create, find, kill, names
from actors.start_order import StartOrder
from actors.warm_pool import WarmPool
from cluster.admission.registrar import Registrar
from cluster.admission.registry import LiveRow
from cluster.agents.record import AgentRecord
from cluster.agents.registration import parse_registration
from cluster.errors import IllegalTransitionError, NotFoundError, SovereignError, StaleGenerationError, UnavailableError
from cluster.identity.grants import derive_agent_key, issue_ticket
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.principal import Principal
from cluster.settings import Settings
from cluster.telemetry.ecs_log import bind, configure_logging
from cluster.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

NAME = "governance"
TICKET_TTL_S = 300.0
START_TIMEOUT_S = 20.0
STATUS_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
# Threads that run decisions and transactions; each keeps a policy engine of its own.
THREADS = 8


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
class _Live:
    """One generation that answers, as this process knows it."""

    handle: Handle
    host: str
    port: int
    generation: int
    # What is enforced on it; None until it said so.
    enforcement: dict[str, Any] | None = None


def _answered(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
    """Turn a coroutine's value or SovereignError into the JSON bytes that cross to the caller."""

    async def wrapped(self: GovernanceActor, *args: Any, **kwargs: Any) -> bytes:
        try:
            return json.dumps({"ok": await method(self, *args, **kwargs)}).encode()
        except SovereignError as e:
            return json.dumps({"problem": e.to_problem()}).encode()
        except Exception:
            log.exception("governance failed in %s", method.__name__)
            raise

    wrapped.__name__ = method.__name__
    wrapped.__doc__ = method.__doc__
    return wrapped


class GovernanceActor:
    """Gate, ledger keeper and waker of agents. It may die at any instant: all that counts is in coordination and journal."""

    def __init__(self, settings: str) -> None:
        self._settings = Settings.from_json(settings)
        configure_logging("governance", level=self._settings.log_level, directory=self._settings.log_dir)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="governance")
        self._master = bytes.fromhex((self._settings.secret_dir / "master-key").read_text())
        self._metrics = Metrics.of_process(self._settings.metrics_dir, "governance")
        self._pool = WarmPool(self._settings.warm_pool, self._metrics)
        self._live: dict[tuple[str, str], _Live] = {}
        self._starting: dict[tuple[str, str], asyncio.Task[_Live]] = {}
        # One step of an agent's life at a time; a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        # Held here because the loop itself keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: asyncio.Task[None] | None = None
        self._registrar: Registrar

    async def _prepared(self) -> None:
        """Recover once, whoever comes first; until then nobody is answered."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._recover())
        await asyncio.shield(self._ready)

    @_answered
    async def ready(self) -> dict[str, Any]:
        """Return once what an earlier governor left was put right."""
        await self._prepared()
        return {"live": len(self._live)}

    @_answered
    async def register(self, principal: str, body: bytes, request_id: str = "", idempotency_key: str = "") -> dict[str, Any]:
        """Admit an agent or raise; `body` is the registration's JSON. No process is started."""
        await self._prepared()
        who = Principal.from_json(principal)
        request = parse_registration(body)
        register = partial(self._registrar.register, who, request, request_id=request_id, idempotency_key=idempotency_key)
        registration = await self._run(register)
        return {"answer": registration.answer, "agent": registration.record.to_public(), "created": registration.created}

    @_answered
    async def get(self, principal: str, agent_id: str) -> dict[str, Any]:
        """Return one agent of the caller's tenant."""
        await self._prepared()
        who = Principal.from_json(principal)
        record = await self._run(partial(self._registrar.get, who.tenant, AgentId.parse(agent_id, "agent_id")))
        return self._public(who.tenant, record)

    @_answered
    async def list(self, principal: str, after: str, limit: int) -> dict[str, Any]:
        """Return up to `limit` agents of the caller's tenant with ids after `after`."""
        await self._prepared()
        who = Principal.from_json(principal)
        records = await self._run(partial(self._registrar.list, who.tenant, after, limit))
        following = records[-1].spec.agent_id if len(records) == limit else ""
        return {"agents": [self._public(who.tenant, r) for r in records], "next": following}

    @_answered
    async def remove(self, principal: str, agent_id: str) -> dict[str, Any]:
        """Revoke an agent: it does not wake again, its process drains and ends, its quota comes back."""
        await self._prepared()
        who = Principal.from_json(principal)
        agent = AgentId.parse(agent_id, "agent_id")
        await self._run(partial(self._registrar.remove, who.tenant, agent, who))
        key = (str(who.tenant), str(agent))
        if (starting := self._starting.get(key)) is not None:
            await asyncio.gather(starting, return_exceptions=True)
        if (live := self._live.pop(key, None)) is not None:
            await self._passivate(key, live)
        return {"status": "removed", "agent_id": agent}

    @_answered
    async def resolve(self, principal: str, agent_id: str, not_generation: int = 0) -> dict[str, Any]:
        """Return where the agent answers and a ticket for the caller, waking the agent when it is passive.

        `not_generation` names a generation that the caller found gone; it is looked after before it is handed out again.
        """
        await self._prepared()
        who = Principal.from_json(principal)
        tenant, agent = who.tenant, AgentId.parse(agent_id, "model")
        key = (str(tenant), str(agent))
        live = self._live.get(key)
        if live is not None and live.generation == not_generation and not await self._answers(live):
            await self._lost(key, live)
            live = None
        if live is None:
            live = await self._wake(key, tenant, agent)
        grant = issue_ticket(
            self._agent_key(key, live.generation),
            caller=who.subject,
            tenant=tenant,
            agent=agent,
            generation=live.generation,
            ttl_s=TICKET_TTL_S,
        )
        return Resolved(
            live.host, live.port, live.generation, grant.ticket_bytes, grant.session_key, grant.ticket.expires_us
        ).to_json()

    @_answered
    async def fill_pool(self) -> dict[str, Any]:
        """Fill the warm pool; called when the cluster is ready."""
        self._pool.fill()
        return {}

    @_answered
    async def status(self) -> dict[str, Any]:
        """Return live agents with what is enforced on each, and the warm pool."""
        await self._prepared()
        return {
            "live": [
                {"tenant": t, "agent_id": a, "generation": x.generation, "enforcement": x.enforcement}
                for (t, a), x in sorted(self._live.items())
            ],
            "policy": self._registrar.policy_status(),
            "warm_pool": self._pool.size,
        }

    @_answered
    async def drain_all(self) -> dict[str, Any]:
        """Passivate every agent, for a stop of the node."""
        await self._prepared()
        live, self._live = self._live, {}
        await asyncio.gather(*(self._passivate(key, x) for key, x in live.items()), return_exceptions=True)
        self._registrar.close()
        self._metrics.flush()
        return {"drained": len(live)}

    async def _wake(self, key: tuple[str, str], tenant: TenantId, agent: AgentId) -> _Live:
        """Start the agent once, however many callers ask at the same time."""
        task = self._starting.get(key)
        if task is None:
            task = self._starting[key] = asyncio.ensure_future(self._start(key, tenant, agent))
            task.add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start(self, key: tuple[str, str], tenant: TenantId, agent: AgentId) -> _Live:
        began_ns = time.monotonic_ns()
        async with self._lock(key):
            live = await self._start_alone(key, tenant, agent)
        self._metrics.woken((time.monotonic_ns() - began_ns) // 1_000)
        self._metrics.live_agents(len(self._live))
        self._pool.taken()
        # The caller need not wait for the record: until it is written, recovery finds the generation as `starting`.
        self._background(self._settle_start(key, live))
        return live

    async def _start_alone(self, key: tuple[str, str], tenant: TenantId, agent: AgentId) -> _Live:
        with bind(tenant=tenant, agent=agent):
            record, generation = await self._begin(key, tenant, agent)
            handle: Handle | None = None
            try:
                handle = self._create(key, record, generation)
                order = StartOrder(
                    settings=self._settings,
                    tenant=str(tenant),
                    record=record,
                    generation=generation,
                    agent_key=self._agent_key(key, generation),
                    egress_hosts=self._registrar.egress_hosts(record),
                )
                status = json.loads(await asyncio.wait_for(handle.start.remote(order.to_bytes()), START_TIMEOUT_S))
                live = _Live(handle, status["host"], status["port"], generation)
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
            self._live[key] = live
            self._watch(key, live)
            return live

    async def _begin(self, key: tuple[str, str], tenant: TenantId, agent: AgentId) -> tuple[AgentRecord, int]:
        """Make the agent `starting`; a row that speaks of a process which nobody here knows is put right first."""
        begin = partial(self._registrar.begin_start, tenant, agent)
        try:
            return await self._run(begin)
        except IllegalTransitionError:
            record = await self._run(partial(self._registrar.get, tenant, agent))
            await self._gone(key, record.generation, "lost")
            return await self._run(begin)

    def _lock(self, key: tuple[str, str]) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _settle_start(self, key: tuple[str, str], live: _Live) -> None:
        """Record that a generation answers, and learn what is enforced on it."""
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

    def _create(self, key: tuple[str, str], record: AgentRecord, generation: int) -> Handle:
        resources = record.spec.resources
        # The generation in the name keeps a killed actor's name from ever leading to a later one.
        return create(
            AgentActor,
            name=actor_name(key, generation),
            cpus=resources.cpu_milli / 1000,
            memory_bytes=resources.memory_bytes,
            restarts=False,  # only governance revives
            concurrency=16,
            get_if_exists=False,
        )

    def _watch(self, key: tuple[str, str], live: _Live) -> None:
        """Notice the end of an agent's process when it happens, not when the next caller trips over it."""

        async def until_it_ends() -> None:
            with contextlib.suppress(RayError):
                await live.handle.lives.remote()
            if self._live.get(key) is live:
                await self._lost(key, live)

        self._background(until_it_ends())

    async def _answers(self, live: _Live) -> bool:
        try:
            await asyncio.wait_for(live.handle.status.remote(), STATUS_TIMEOUT_S)
        except (RayError, TimeoutError):
            return False
        return True

    async def _lost(self, key: tuple[str, str], live: _Live) -> None:
        if self._live.get(key) is live:
            del self._live[key]
            self._metrics.live_agents(len(self._live))
            kill(live.handle)
            log.warning("agent %s of %s ended by itself in generation %d", key[1], key[0], live.generation)
            async with self._lock(key):
                await self._gone(key, live.generation, "lost")

    async def _passivate(self, key: tuple[str, str], live: _Live) -> None:
        await self._end(live)
        await self._gone(key, live.generation, "drained")

    async def _gone(self, key: tuple[str, str], generation: int, reason: str) -> None:
        """Record that a generation has no process any more; nothing is to be done when its row went on without it."""
        with contextlib.suppress(NotFoundError, StaleGenerationError):
            await self._run(partial(self._registrar.mark_passive, TenantId(key[0]), AgentId(key[1]), generation, reason))

    async def _end(self, live: _Live) -> None:
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(live.handle.drain.remote(DRAIN_TIMEOUT_S), DRAIN_TIMEOUT_S + 2)
            return
        kill(live.handle)

    async def _recover(self) -> None:
        """Put right what an earlier governor left midway: decisions without outcome, starts without end, strays."""
        self._registrar = await self._run(partial(open_registrar, self._settings))
        await self._run(self._registrar.recover)
        rows = await self._run(self._registrar.live_rows)
        wanted = {actor_name((r.tenant, r.agent_id), r.generation): r for r in rows}
        running = await self._run(partial(names, "agent:"))
        for name in running - wanted.keys():
            log.warning("ending %s: no record stands behind it", name)
            with contextlib.suppress(ValueError):
                kill(await self._run(partial(find, name)))
        await asyncio.gather(*(self._adopt(row, name in running) for name, row in wanted.items()))
        log.info("governance is ready: %d agents live", len(self._live))

    async def _adopt(self, row: LiveRow, exists: bool) -> None:
        """Take over a running agent of an earlier governor, or record that it is gone."""
        key = (row.tenant, row.agent_id)
        if exists:
            with contextlib.suppress(ValueError, RayError, TimeoutError):
                handle = await self._run(partial(find, actor_name(key, row.generation)))
                status = json.loads(await asyncio.wait_for(handle.status.remote(), STATUS_TIMEOUT_S))
                if status["state"] == "live" and row.state in ("starting", "live"):
                    live = _Live(handle, status["host"], status["port"], row.generation, status["enforcement"])
                    if row.state == "starting":
                        await self._settle_start(key, live)
                    self._live[key] = live
                    self._watch(key, live)
                    return
                kill(handle)
        await self._gone(key, row.generation, "lost")

    def _agent_key(self, key: tuple[str, str], generation: int) -> bytes:
        return derive_agent_key(self._master, *key, generation)

    def _public(self, tenant: TenantId, record: AgentRecord) -> dict[str, Any]:
        live = self._live.get((str(tenant), str(record.spec.agent_id)))
        return record.to_public() | {"enforcement": live.enforcement if live else None}

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def actor_name(key: tuple[str, str], generation: int) -> str:
    """Return the Ray name of one generation of an agent."""
    return f"agent:{key[0]}:{key[1]}:g{generation}"


def open_registrar(settings: Settings) -> Registrar:
    """Open governance's ledger: a new epoch fences off every earlier governor, and its journal is registered first."""
    from cluster import wiring

    return wiring.build_registrar(settings)


def start_governance(settings: Settings) -> Handle:
    """Create the governance actor of this cluster, or return the one that runs."""
    return create(GovernanceActor, settings.to_json(), name=NAME, restarts=True, concurrency=4096)
