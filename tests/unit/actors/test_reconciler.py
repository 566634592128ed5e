"""What the reconciler does with what it finds. The ledger is real; Ray's control store is a stand-in with odd actors."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from actors import agent_process
from actors.agent_processes import AgentProcesses
from actors.reconciler import Reconciler
from cluster import wiring
from cluster.admission.reconciliation import SeenActor
from cluster.admission.registrar import Registrar
from cluster.agents.registration import parse_registration
from cluster.errors import StorageError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from tests.governors import changed_policies

TENANT, AGENT = TenantId("default"), AgentId("planner")
OWNER = Principal(TENANT, ProjectId("default"), "key:test", frozenset(Scope))


class Store:
    """Actors, what the drivers of jobs say of themselves, and what was asked to end."""

    own_job = "01000000"

    def __init__(self) -> None:
        self.actors: list[SeenActor] = []
        self.metadata: dict[str, dict[str, str]] = {}
        self.killed: list[str] = []

    def live_actors(self) -> list[SeenActor]:
        return self.actors

    def job_metadata(self, job_id: str) -> dict[str, str]:
        return self.metadata.get(job_id, {})

    def kill_actor(self, actor_id: str) -> None:
        self.killed.append(actor_id)


@pytest.fixture(autouse=True)
def engines_end_on_their_thread() -> Iterator[None]:
    """A policy engine that the garbage collector finds on another thread complains."""
    yield
    gc.collect()


@pytest.fixture
async def ledger(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Registrar, AgentProcesses, list[Any]]]:
    """One agent whose first generation starts, no process that governance knows of, and the facts written."""
    policies = changed_policies(tmp_path, "plans.yaml", {"trial.raw_actors": True})
    settings = Settings.load(home=tmp_path, policy_dir=policies)
    settings.secret_dir.mkdir(parents=True)
    (settings.secret_dir / "master-key").write_text("ab" * 32)
    monkeypatch.setattr(Metrics, "of_process", Metrics)
    monkeypatch.setattr(agent_process, "find", lambda name: pytest.fail(f"{name} was looked up"))
    wiring.sign_policies(settings)
    registrar = wiring.build_registrar(settings)
    registrar.recover()
    registrar.register(OWNER, parse_registration({"agent_id": AGENT, "capabilities": ["conversation"]}))
    registrar.begin_start(TENANT, AGENT)
    written: list[Any] = []
    append = registrar._journal._sink.append
    monkeypatch.setattr(registrar._journal._sink, "append", lambda fact: (written.append(fact), append(fact))[1])
    yield registrar, AgentProcesses(settings, registrar, Metrics(settings.metrics_dir, "test"), run), written
    registrar.close()


async def run(function: Callable[[], Any]) -> Any:
    return function()


def reconciler(registrar: Registrar, processes: AgentProcesses, store: Store) -> Reconciler:
    return Reconciler("governance", processes, registrar, lambda: store, run)


def actor(actor_id: str, name: str = "", namespace: str = "sovereign", job_id: str = "02000000") -> SeenActor:
    return SeenActor(actor_id, name, namespace, "Mine", job_id, 7)


def planners_own(registrar: Registrar) -> SeenActor:
    """Return the actor of the agent that starts, which bears the name that its row says."""
    [row] = registrar.live_rows()
    return actor("bb", row.process, job_id=Store.own_job)


def kills(written: list[Any]) -> list[AuditEvent]:
    events = [AuditEvent.from_body(fact.body) for fact in written]
    return [e for e in events if e.action == AuditAction.RECONCILER_KILL]


async def test_a_stray_is_written_down_once_and_ended_until_it_is_gone(ledger: Any) -> None:
    """The fact comes first, and holds job, class, name and process; nothing that it was called with."""
    registrar, processes, written = ledger
    store = Store()
    store.actors = [actor("aa", "mine\u202e"), planners_own(registrar)]
    store.metadata["02000000"] = {"job_submission_id": "run-1", "sovereign.tenant": "default"}
    looks = reconciler(registrar, processes, store)
    for _ in range(4):
        await looks.look()
    assert store.killed == ["aa"] * 3
    [fact] = kills(written)
    assert (fact.actor, fact.object_id, fact.tenant_id) == ("reconciler", "aa", "default")
    assert fact.detail == {"job_id": "02000000", "class_name": "Mine", "name": "mine\u202e", "namespace": "sovereign", "pid": 7}


async def test_a_stray_that_cannot_be_written_down_lives_on_until_it_can(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No effect without its fact: a full disk ends nothing, and is tried again with the next look."""
    registrar, processes, written = ledger
    store = Store()
    store.actors = [actor("aa"), planners_own(registrar)]
    looks, record = reconciler(registrar, processes, store), registrar.record_stray

    def full(*_: Any) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(registrar, "record_stray", full)
    await looks.look()
    with pytest.raises(StorageError):
        await looks.look()
    assert store.killed == []
    monkeypatch.setattr(registrar, "record_stray", record)
    await looks.look()
    assert (store.killed, len(kills(written))) == (["aa"], 1)


async def test_an_agent_that_just_starts_is_no_stray(ledger: Any) -> None:
    """Its row says `starting` before its actor exists, and governance knows its process only once it answers."""
    registrar, processes, written = ledger
    store = Store()
    store.actors = [planners_own(registrar)]
    looks = reconciler(registrar, processes, store)
    for _ in range(3):
        await looks.look()
    assert len(processes.live) == 0
    assert (store.killed, kills(written)) == ([], [])


async def test_a_registered_agent_whose_actor_vanished_is_put_right(ledger: Any) -> None:
    """Its row becomes passive at the second look, so that its next call starts it."""
    registrar, processes, _ = ledger
    registrar.mark_live(TENANT, AGENT, 1, "127.0.0.1:1")
    looks = reconciler(registrar, processes, Store())
    await looks.look()
    assert registrar.get(TENANT, AGENT).state.value == "live"
    await looks.look()
    assert registrar.get(TENANT, AGENT).state.value == "passive"
    assert registrar.begin_start(TENANT, AGENT)[1] == 2


async def test_a_start_that_waits_for_room_is_not_put_right(ledger: Any) -> None:
    """Its row is ahead of its actor, and governance is at it."""
    registrar, processes, _ = ledger
    processes._starting["default", "planner"] = object()
    looks = reconciler(registrar, processes, Store())
    for _ in range(3):
        await looks.look()
    assert registrar.get(TENANT, AGENT).state.value == "starting"


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"job_submission_id": "run-1", "sovereign.tenant": "trial"}, True),
        ({"job_submission_id": "run-1", "sovereign.tenant": "default"}, False),
        ({"job_submission_id": "run-1", "sovereign.tenant": "nobody"}, False),
        ({"job_submission_id": "run-1", "sovereign.tenant": "trial", "sovereign.scopes": "odd"}, False),
        ({"job_submission_id": "run-1"}, False),
        ({"sovereign.tenant": "trial"}, False),
        ({}, False),
    ],
)
async def test_only_jobs_of_a_plan_with_raw_actors_keep_theirs(ledger: Any, metadata: dict[str, str], kept: bool) -> None:
    """A driver that was not submitted as a job has no plan, and metadata that can't be taken gives nothing."""
    registrar, processes, _ = ledger
    store = Store()
    store.actors, store.metadata["02000000"] = [actor("aa")], metadata
    looks = reconciler(registrar, processes, store)
    for _ in range(2):
        await looks.look()
    assert (store.killed == []) is kept
