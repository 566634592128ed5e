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

from actors import agent_process, agent_processes, governance
from actors.agent_process import AgentProcess
from actors.agent_processes import AgentProcesses
from actors.governance import GovernanceActor
from actors.room import Account
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
OWNER = Principal(TENANT, ProjectId("default"), "key:test", frozenset(Scope))


class Handle:
    """An actor whose `status` and `drain` do what the test says, and which can be killed once."""

    def __init__(self, status: Callable[[], Any]) -> None:
        self.status = SimpleNamespace(remote=status)
        self.drain = SimpleNamespace(remote=lambda timeout_s, only_idle: asyncio.sleep(0, True))
        self.watch = SimpleNamespace(remote=lambda idle_s: asyncio.Event().wait())


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


def state(registrar: Registrar) -> str:
    return registrar.get(TENANT, AGENT).state.value


async def test_a_process_that_does_not_say_that_it_lives_is_ended_before_its_row_is_passive(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would go on beside its next generation, with its tickets, its CPU and its memory."""
    monkeypatch.setattr(agent_process, "STATUS_TIMEOUT_S", 0.01)
    silent = ray.actors["agent:default:planner:g1"] = Handle(asyncio.Event().wait)
    found = await processes(settings, registrar)
    await found.recover()
    assert (ray.killed, found.live, state(registrar)) == ([silent], {}, "passive")


async def test_a_running_agent_is_taken_over(settings: Settings, registrar: Registrar, ray: Ray) -> None:
    """One that answers is adopted as it is: its calls go on."""

    async def answers() -> bytes:
        return json.dumps({"state": "live", "host": "127.0.0.1", "port": 1, "enforcement": {}}).encode()

    ray.actors["agent:default:planner:g1"] = Handle(answers)
    found = await processes(settings, registrar)
    await found.recover()
    assert (ray.killed, [x.generation for x in found.live.values()], state(registrar)) == ([], [1], "live")


async def test_an_end_that_the_store_did_not_take_is_recorded_later(
    settings: Settings, registrar: Registrar, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed agent's quota comes back although the second transaction failed at first."""
    found = await processes(settings, registrar)
    found.live["default", "planner"] = AgentProcess(Handle(asyncio.Event().wait), "127.0.0.1", 1, 1, Resources(100, 1 << 20))
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
    registrar.check_invocation(OWNER, AGENT)
    for who, check in ((stranger, "tenant_active"), (without, "scope_held")):
        with pytest.raises(Exception, match="can't be called") as refused:
            registrar.check_invocation(who, AGENT)
        assert [e.field for e in refused.value.errors] == [check]  # type: ignore[attr-defined]  # AdmissionDeniedError has them
