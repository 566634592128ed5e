"""What governance does when Ray or its store does not do as told. The ledger is real; Ray's handles are stand-ins that fail."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from actors import agent_process, agent_processes, gangs, governance
from actors.agent_process import AgentProcess
from actors.agent_processes import AgentProcesses
from actors.governance import GovernanceActor
from actors.room import Account
from actors.start_order import StartOrder
from cluster import wiring
from cluster.admission.registrar import Registrar, Registration
from cluster.agents.registration import parse_registration
from cluster.agents.spec import Resources
from cluster.errors import StorageError, UnavailableError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from tests.gates import open_gate

TENANT, AGENT = TenantId("default"), AgentId("planner")
IDLE, NEXT, PAIR = AgentId("idle"), AgentId("next"), AgentId("pair")
OWNER = Principal(TENANT, ProjectId("default"), "key:test", frozenset(Scope))


class Handle:
    """An actor whose `status` and `drain` do what the test says, and which can be killed once."""

    def __init__(self, status: Callable[[], Any]) -> None:
        self.status = SimpleNamespace(remote=status)
        self.drain = SimpleNamespace(remote=lambda timeout_s, only_idle: asyncio.sleep(0, True))
        self.vacate = SimpleNamespace(remote=lambda timeout_s: asyncio.sleep(0, "vacant"))
        self.rebind = SimpleNamespace(remote=self.bound)
        # The agents that it became.
        self.became: list[str] = []
        self.watch = SimpleNamespace(remote=lambda idle_s, report_s: asyncio.Event().wait())

    async def bound(self, order: bytes, agent_key: bytes) -> bytes:
        self.became.append(str(StartOrder.from_bytes(order).record.spec.agent_id))
        return b'{"host": "127.0.0.1", "port": 2}'


class Ray:
    """The actors that exist by name, and those that were killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actors: dict[str, Handle] = {}
        self.killed: list[Handle] = []
        monkeypatch.setattr(agent_processes, "names", lambda prefix: set(self.actors))
        monkeypatch.setattr(agent_process, "find", self.find)
        monkeypatch.setattr(agent_process, "kill", self.killed.append)
        # Without its thread for ever: one that outlives a test may collect what only the test's own thread may drop.
        monkeypatch.setattr(Metrics, "of_process", Metrics)
        monkeypatch.setattr(agent_processes, "nodes_of_ray", list)
        monkeypatch.setattr(governance, "nodes_of_ray", list)
        monkeypatch.setattr(gangs, "group_names", lambda prefix: set())
        monkeypatch.setattr(agent_processes, "account_of_ray", lambda: Account(Resources(0, 0), Resources(0, 0)))

    def find(self, name: str) -> Handle:
        if name not in self.actors:
            raise ValueError(name)
        return self.actors[name]


@pytest.fixture(autouse=True)
def engines_end_on_their_thread() -> Iterator[None]:
    """A policy engine that the garbage collector finds on another thread complains."""
    yield
    gc.collect()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    settings = Settings.load(home=tmp_path)
    settings.secret_dir.mkdir(parents=True)
    (settings.secret_dir / "master-key").write_text("ab" * 32)
    open_gate(settings.journal_dir)
    return settings


@pytest.fixture
async def registrar(settings: Settings) -> AsyncIterator[Registrar]:
    """The real ledger, with one agent whose first generation is live."""
    wiring.sign_policies(settings)
    opened = wiring.build_registrar(settings)
    opened.recover()
    opened.register(OWNER, parse_registration({"agent_id": AGENT, "capabilities": ["conversation"]}))
    opened.begin_start(TENANT, AGENT)
    opened.mark_live(TENANT, AGENT, 1, "127.0.0.1:1")
    yield opened
    opened.close()


async def processes(settings: Settings, registrar: Registrar) -> AgentProcesses:
    async def run(function: Callable[[], Any]) -> Any:
        return function()

    return AgentProcesses(settings, registrar, Metrics(settings.metrics_dir, "test"), run)


def state(registrar: Registrar, agent: AgentId = AGENT) -> str:
    return registrar.get(TENANT, agent).state.value


def process(registrar: Registrar, agent: AgentId = AGENT) -> str:
    """Return the name of the process that holds the agent's last generation."""
    return registrar.get(TENANT, agent).lives[-1].process


def answers(agent: AgentId, generation: int) -> Callable[[], Any]:
    """Return a `status` that says that the process is this generation."""

    async def status() -> bytes:
        who = {"tenant": str(TENANT), "agent_id": agent, "generation": generation}
        return json.dumps(who | {"state": "live", "host": "127.0.0.1", "port": 1, "idle_s": 9.0, "enforcement": {}}).encode()

    return status


async def test_a_process_that_does_not_say_that_it_lives_is_ended_before_its_row_is_passive(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would go on beside its next generation, with its tickets, its CPU and its memory."""
    monkeypatch.setattr(agent_process, "STATUS_TIMEOUT_S", 0.01)
    silent = ray.actors[process(registrar)] = Handle(asyncio.Event().wait)
    found = await processes(settings, registrar)
    await found.recover()
    assert (ray.killed, list(found.live), state(registrar)) == ([silent], [], "passive")


async def test_a_running_agent_is_taken_over(settings: Settings, registrar: Registrar, ray: Ray) -> None:
    """One that answers is adopted as it is: its calls go on."""

    ray.actors[process(registrar)] = Handle(answers(AGENT, 1))
    found = await processes(settings, registrar)
    await found.recover()
    assert (ray.killed, [x.generation for x in found.live], state(registrar)) == ([], [1], "live")


@pytest.fixture
async def crowded(settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch) -> AgentProcesses:
    """An idle agent of 100m and 64 MiB, which is all the room that there is, and another one like it that is passive."""
    limits = {"cpu": "100m", "memory": "64Mi"}
    for agent in ("idle", "next"):
        policy = {"resource_limits": limits}
        body = {"agent_id": agent, "capabilities": ["conversation"], "security_policy": policy}
        registrar.register(OWNER, parse_registration(body))
    registrar.begin_start(TENANT, IDLE)
    registrar.mark_live(TENANT, IDLE, 1, "127.0.0.1:1")
    registrar.mark_passive(TENANT, AGENT, 1, "lost")
    size = Resources(100, 64 << 20)
    monkeypatch.setattr(agent_processes, "account_of_ray", lambda: Account(size, size))
    monkeypatch.setattr(agent_process, "create", lambda *a, **k: pytest.fail("a fresh process was started"))
    ray.actors[process(registrar, IDLE)] = Handle(answers(IDLE, 1))
    found = await processes(settings, registrar)
    await found.recover()
    await asyncio.sleep(0)  # the first account
    return found


async def test_without_room_an_idle_agents_process_becomes_the_one_that_is_called(
    crowded: AgentProcesses, registrar: Registrar, ray: Ray
) -> None:
    """No process is started and none is killed; the idle one is passive, and is woken the same way when it is called."""
    (handle,) = ray.actors.values()
    (found,) = await crowded.resolve(TENANT, NEXT, "key:test", 0)
    assert (found.port, found.generation, handle.became, ray.killed) == (2, 1, ["next"], [])
    assert state(registrar, IDLE) == "passive"
    assert [x.key[1] for x in crowded.live] == ["next"]
    handle.status = SimpleNamespace(remote=answers(NEXT, 1))
    assert (await crowded.resolve(TENANT, IDLE, "key:test", 0))[0].generation == 2
    assert handle.became == ["next", "idle"]


async def test_the_process_of_an_agent_at_work_stays_its_own(crowded: AgentProcesses, registrar: Registrar, ray: Ray) -> None:
    """A call may come after it was found idle: then it goes on, and who wakes hears that there is no room."""
    (handle,) = ray.actors.values()
    handle.vacate = SimpleNamespace(remote=lambda timeout_s: asyncio.sleep(0, "busy"))
    handle.drain = SimpleNamespace(remote=lambda timeout_s, only_idle: asyncio.sleep(0, False))
    with pytest.raises(UnavailableError, match="no room"):
        await crowded.resolve(TENANT, NEXT, "key:test", 0)
    assert ([x.key[1] for x in crowded.live], handle.became, ray.killed) == (["idle"], [], [])
    assert (state(registrar, IDLE), state(registrar, NEXT)) == ("live", "passive")


@pytest.mark.parametrize("broken", ["rebind", "ledger"])
async def test_a_rebinding_that_fails_ends_the_process_and_both_agents_are_passive(
    crowded: AgentProcesses, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Whatever fails on the way, no process is left that is nobody's, and its room is free again."""
    (handle,) = ray.actors.values()

    def fails(*arguments: object) -> Any:
        raise UnavailableError("The store is busy.") if broken == "ledger" else RayError("gone")

    if broken == "ledger":
        monkeypatch.setattr(registrar, "rebind", fails)
    else:
        handle.rebind = SimpleNamespace(remote=fails)
    with pytest.raises(UnavailableError):
        await crowded.resolve(TENANT, NEXT, "key:test", 0)
    assert (ray.killed, list(crowded.live)) == ([handle], [])
    assert (state(registrar, IDLE), state(registrar, NEXT)) == ("passive", "passive")
    with pytest.raises(pytest.fail.Exception, match="fresh"):
        await crowded.resolve(TENANT, NEXT, "key:test", 0)


async def test_a_governor_that_died_between_two_agents_leaves_a_process_that_is_ended(
    settings: Settings, registrar: Registrar, ray: Ray
) -> None:
    """A process that says it is nobody, or the agent that its row no longer names, is ended; its agent is passive."""
    for handle in (Handle(lambda: asyncio.sleep(0, b'{"state": "blank"}')), Handle(answers(NEXT, 1))):
        ray.actors = {process(registrar): handle}
        found = await processes(settings, registrar)
        await found.recover()
        assert (ray.killed[-1], list(found.live), state(registrar)) == (handle, [], "passive")
        registrar.begin_start(TENANT, AGENT)


async def test_every_replica_is_found_and_one_that_is_retired_ends_its_calls_first(
    settings: Settings, registrar: Registrar, ray: Ray
) -> None:
    """Each has a ticket of its own. A governor that dies meanwhile leaves it to the next one to wait for the last calls."""
    registrar.mark_passive(TENANT, AGENT, 1, "lost")
    body = {"agent_id": "pair", "capabilities": ["conversation"], "max_replicas": 2}
    registrar.register(OWNER, parse_registration(body))
    for generation in (1, 2):
        registrar.begin_start(TENANT, PAIR)
        registrar.mark_live(TENANT, PAIR, generation, f"127.0.0.1:{generation}")
        ray.actors[process(registrar, PAIR)] = Handle(answers(PAIR, generation))
    found = await processes(settings, registrar)
    await found.recover()
    pair = await found.resolve(TENANT, PAIR, "key:test", 0)
    assert [(r.generation, r.alone) for r in pair] == [(1, False), (2, False)]
    assert pair[0].session_key != pair[1].session_key

    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def drained(within_s: float, only_idle: bool) -> bool:
        waiting.set()
        await go_on.wait()
        return True

    second = list(ray.actors.values())[1]
    second.drain = SimpleNamespace(remote=drained)
    await found.retire(list(found.live)[1])
    await asyncio.wait_for(waiting.wait(), 10)
    assert [r.generation for r in await found.resolve(TENANT, PAIR, "key:test", 0)] == [1]
    assert [(r.generation, r.state) for r in registrar.live_rows()] == [(1, "live"), (2, "draining")]

    later = await processes(settings, registrar)
    await later.recover()
    assert ([x.generation for x in later.live], ray.killed) == ([1], [])
    go_on.set()
    await asyncio.gather(*later._retiring.values())
    assert [(r.generation, r.state) for r in registrar.live_rows()] == [(1, "live")]


async def test_an_end_that_the_store_did_not_take_is_recorded_later(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed agent's quota comes back although the second transaction failed at first."""
    found = await processes(settings, registrar)
    handle, key = Handle(asyncio.Event().wait), (str(TENANT), str(AGENT))
    found.live.put(AgentProcess(handle, process(registrar), key, "127.0.0.1", 1, 1, registrar.get(TENANT, AGENT).spec))
    marked, mark = asyncio.Event(), registrar.mark_passive
    loop = asyncio.get_running_loop()
    failures = [UnavailableError("The store is busy."), StorageError("The disk is full.")]

    def at_last(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        done = mark(*arguments)
        loop.call_soon_threadsafe(marked.set)
        return done

    monkeypatch.setattr(registrar, "mark_passive", at_last)
    registrar.remove(TENANT, AGENT, OWNER)
    await found.end(TENANT, AGENT)
    assert registrar.quota(TENANT)["agents"]["used"] == 1
    await asyncio.wait_for(marked.wait(), 10)
    assert registrar.quota(TENANT)["agents"]["used"] == 0


async def test_governance_tries_again_after_a_recovery_that_failed(
    settings: Settings, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a moment does not close the gate until somebody restarts it."""
    wiring.sign_policies(settings)
    broken, whole = wiring.build_registrar(settings), wiring.build_registrar(settings)

    def fails() -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(broken, "recover", fails)
    ledgers = [whole, broken]
    monkeypatch.setattr(governance, "open_registrar", lambda settings: ledgers.pop())
    monkeypatch.setattr(governance, "configure_logging", lambda *a, **k: None)
    actor = GovernanceActor(settings.to_json())
    first, second = json.loads(await actor.ready()), json.loads(await actor.ready())
    assert first["problem"]["code"] == "storage"
    assert second == {"ok": {"live": 0}}
    whole.close()


async def test_a_crowd_of_registrations_keeps_nobody_from_being_answered(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registrations wait for the disk on threads of their own: another tenant's read or wake does not wait behind them."""
    go_on, registered = threading.Event(), registrar.get(TENANT, AGENT)

    def slow(*arguments: Any, **more: Any) -> Registration:
        go_on.wait()
        return Registration(registered, created=True)

    monkeypatch.setattr(registrar, "register", slow)
    monkeypatch.setattr(governance, "open_registrar", lambda settings: registrar)
    monkeypatch.setattr(governance, "configure_logging", lambda *a, **k: None)
    actor = GovernanceActor(settings.to_json())
    body = json.dumps({"agent_id": "next", "capabilities": ["conversation"]}).encode()
    crowd = [asyncio.ensure_future(actor.register(OWNER.to_json(), body)) for _ in range(100)]
    try:
        assert "ok" in json.loads(await asyncio.wait_for(actor.get(OWNER.to_json(), AGENT), 10))
        assert not any(r.done() for r in crowd)
    finally:
        go_on.set()
        await asyncio.gather(*crowd)


async def test_a_tenant_that_is_no_longer_active_gets_no_ticket_for_a_live_agent(
    settings: Settings, registrar: Registrar
) -> None:
    """Control: every ticket stands on today's policy, also when the agent is awake."""
    stranger = Principal(TenantId("nobody"), ProjectId("default"), "key:test", frozenset(Scope))
    without = Principal(TENANT, ProjectId("default"), "key:test", frozenset(Scope) - {Scope.AGENTS_INVOKE})
    registrar.invocations.check(OWNER, AGENT, ttl_s=60.0)
    for who, check in ((stranger, "tenant_active"), (without, "scope_held")):
        with pytest.raises(Exception, match="can't be called") as refused:
            registrar.invocations.check(who, AGENT, ttl_s=60.0)
        assert [e.field for e in refused.value.errors] == [check]  # type: ignore[attr-defined]  # AdmissionDeniedError has them


def _drains_slowly(handle: Handle) -> tuple[asyncio.Event, asyncio.Event]:
    """Let the end of a process wait for a call that runs; returns when it waits, and what ends the call."""
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def drained(within_s: float, only_idle: bool) -> bool:
        waiting.set()
        await go_on.wait()
        return True

    handle.drain = SimpleNamespace(remote=drained)
    return waiting, go_on


async def test_a_call_to_an_agent_whose_node_is_drained_ends_no_call_that_runs_there(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for those, and wakes the agent anew; the process that drains is not taken for one that nobody knows."""
    handle = ray.actors[process(registrar)] = Handle(answers(AGENT, 1))
    found = await processes(settings, registrar)
    await found.recover()
    waiting, go_on = _drains_slowly(handle)
    ending = asyncio.ensure_future(found.end_all())
    await asyncio.wait_for(waiting.wait(), 10)
    begun: list[int] = []
    begin = registrar.begin_start

    def begins(tenant: TenantId, agent: AgentId) -> Any:
        record, generation = begin(tenant, agent)
        begun.append(generation)
        raise UnavailableError(f"It would start generation {generation} of {record.spec.agent_id}.")

    monkeypatch.setattr(registrar, "begin_start", begins)
    call = asyncio.ensure_future(found.resolve(TENANT, AGENT, "key:test", 0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (ray.killed, begun, call.done()) == ([], [], False)
    go_on.set()
    assert await ending == 1
    with pytest.raises(UnavailableError, match="generation 2"):
        await call
    assert (ray.killed, begun) == ([], [2])


async def test_a_call_to_an_agent_that_an_earlier_governor_began_to_end_is_told_to_come_back(
    settings: Settings, registrar: Registrar, ray: Ray
) -> None:
    """503 and when to retry, for as long as the last calls take: it is no conflict of the caller's."""
    registrar.mark_draining(TENANT, AGENT, 1)
    handle = ray.actors[process(registrar)] = Handle(answers(AGENT, 1))
    waiting, go_on = _drains_slowly(handle)
    found = await processes(settings, registrar)
    await found.recover()
    await asyncio.wait_for(waiting.wait(), 10)
    with pytest.raises(UnavailableError, match="last calls") as refused:
        await found.resolve(TENANT, AGENT, "key:test", 0)
    assert refused.value.retry_after_s
    assert ray.killed == []
    go_on.set()
    await asyncio.gather(*found._retiring.values())


async def test_a_governor_that_died_while_it_drained_a_node_leaves_no_agent_there(
    settings: Settings, registrar: Registrar, ray: Ray
) -> None:
    """The node says that it is drained, so the next one ends what the last one did not come to."""

    async def status() -> bytes:
        return json.dumps(json.loads(await answers(AGENT, 1)()) | {"node": "b"}).encode()

    registrar.cordons.put("b", "operator:test")
    ray.actors[process(registrar)] = Handle(status)
    found = await processes(settings, registrar)
    await found.recover()
    await asyncio.gather(*found._retiring.values())
    assert (list(found.live), ray.killed, state(registrar)) == ([], [], "passive")
