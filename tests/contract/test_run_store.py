"""What every backend of the run store does."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import FakeClock
from cluster.errors import (
    ConflictError,
    IllegalTransitionError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    QuotaExceededError,
)
from cluster.identity.ids import uuid7
from cluster.runs.run import Run, RunStatus, ThreadBusyError
from cluster.runs.run_store import Bounds, RunStore, Which
from cluster.runs.sqlite_run_store import SqliteRunStore

BOUNDS = Bounds(unfinished=5, ended=3, keep_us=1_000_000, documents=3, document_bytes=100, event_bytes=10, page_bytes=3_000)
CLOCK = FakeClock()


def a_run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "run_id": uuid7(),
        "tenant": "acme",
        "project": "default",
        "subject": "key:1",
        "scopes": ("sovereign:agents:invoke",),
        "kind": "native",
        "agent_id": "planner",
        "messages": [{"role": "user", "content": "plan"}],
        "deadline_s": 5.0,
        "created_us": CLOCK.now_us(),
        "updated_us": CLOCK.now_us(),
        "owner": "gateway.a/e1",
    }
    return Run(**(fields | changes))


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    store = SqliteRunStore(tmp_path / "runs.sqlite", BOUNDS, clock=CLOCK)
    yield store
    store.close()


def created(store: RunStore, multitask: Any = "enqueue", **changes: Any) -> Run:
    run = a_run(**changes)
    store.create(run, multitask)
    return run


def claimed(store: RunStore, owner: str = "gateway.a/e1", limit: int = 10) -> list[str]:
    return [run.run_id for run in store.claim(owner, limit, CLOCK.now_us())]


def ended(store: RunStore, run_id: str, status: RunStatus = RunStatus.SUCCESS, **changes: Any) -> Run:
    return store.end(run_id, status, CLOCK.now_us(), **changes)


def test_a_run_is_read_as_it_was_written(store: RunStore) -> None:
    """Every field of a run comes back, through its whole life."""
    run = created(store, thread_id="t-1", options={"temperature": 0}, metadata={"a": [1]}, webhook="https://x/", trace_id="f")
    assert store.get("acme", run.run_id) == run
    (running,) = store.claim("gateway.a/e1", 1, run.created_us + 5)
    assert running == replace(run, status=RunStatus.RUNNING, updated_us=run.created_us + 5)
    store.append_event(run.run_id, "he")
    done = ended(store, run.run_id, answer="he", finish_reason="stop", usage={"tokens_output": 1}, output={"x": 1})
    assert store.get("acme", run.run_id) == done
    assert (done.answer, done.usage, done.output, done.last_event, done.invocation_id) == (
        "he",
        {"tokens_output": 1},
        {"x": 1},
        1,
        run.run_id,
    )


def test_another_tenants_run_is_there_for_nobody_else(store: RunStore) -> None:
    """The words are the same as for a run that does not exist."""
    run = created(store)

    def cancel(tenant: str, run_id: str) -> Run:
        return store.request_cancel(tenant, run_id, 0)

    for ask in (store.get, store.glance, cancel, store.delete):
        with pytest.raises(NotFoundError) as foreign:
            ask("rival", run.run_id)
        with pytest.raises(NotFoundError) as missing:
            ask("acme", "none")
        assert str(foreign.value) == str(missing.value)
    claimed(store)
    store.append_event(run.run_id, "x")
    assert store.events("rival", run.run_id, 0, 10) == []
    assert store.list_runs("rival", "native", Which(), after="", limit=10) == []


def test_runs_of_a_thread_take_turns(store: RunStore) -> None:
    """The second begins when the first has ended; runs of other threads, kinds and tenants do not wait for it."""
    first, second = created(store, thread_id="t"), created(store, thread_id="t")
    others = [created(store, thread_id="u"), created(store, thread_id="t", kind="a2a"), created(store)]
    assert set(claimed(store)) == {first.run_id, *(o.run_id for o in others)}
    assert claimed(store) == []
    ended(store, first.run_id)
    assert claimed(store) == [second.run_id]


def test_a_busy_thread_refuses_a_run_that_would_not_wait(store: RunStore) -> None:
    """Nothing is kept of it; when the thread is free it is taken."""
    first = created(store, thread_id="t")
    with pytest.raises(ThreadBusyError, match=first.run_id):
        created(store, "reject", thread_id="t")
    claimed(store)
    ended(store, first.run_id)
    created(store, "reject", thread_id="t")


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_a_run_may_end_those_before_it(store: RunStore, strategy: str) -> None:
    """What waits is cancelled at once, what runs is told, and the new one begins after it; a rollback leaves no trace."""
    running, waiting = created(store, thread_id="t"), created(store, thread_id="t")
    assert claimed(store) == [running.run_id]
    new = created(store, strategy, thread_id="t")
    assert store.to_cancel("gateway.a/e1") == [running.run_id]
    assert claimed(store) == []
    ended(store, running.run_id, RunStatus.CANCELLED)
    assert claimed(store) == [new.run_id]
    shown = [r.run_id for r in store.list_runs("acme", "native", Which(thread_id="t"), after="", limit=9)]
    if strategy == "interrupt":
        assert shown == [new.run_id, waiting.run_id, running.run_id]
        assert store.get("acme", waiting.run_id).status is RunStatus.CANCELLED
    else:
        assert shown == [new.run_id]
        with pytest.raises(NotFoundError):
            store.get("acme", running.run_id)
        assert store.prune(CLOCK.now_us()) == 2


def test_no_run_ends_twice_or_goes_back(store: RunStore) -> None:
    """The table of transitions holds, whoever asks."""
    run = created(store)
    with pytest.raises(IllegalTransitionError):
        ended(store, run.run_id)
    with pytest.raises(IllegalTransitionError):
        store.append_event(run.run_id, "x")
    claimed(store)
    assert claimed(store) == []
    ended(store, run.run_id)
    for status in RunStatus:
        with pytest.raises(IllegalTransitionError, match="success"):
            store.end(run.run_id, status, 0)
    assert store.request_cancel("acme", run.run_id, 0).status is RunStatus.SUCCESS


def test_a_cancel_is_told_to_whoever_runs_it(store: RunStore) -> None:
    """A run that waits is cancelled by it; one that runs is its owner's to end."""
    waits, runs = created(store, thread_id="t"), None
    runs = store.claim("gateway.a/e1", 1, 0)[0]
    late = created(store, thread_id="t")
    assert store.request_cancel("acme", late.run_id, 0).status is RunStatus.CANCELLED
    told = store.request_cancel("acme", runs.run_id, 0)
    assert (told.run_id, told.status, told.cancel_requested) == (waits.run_id, RunStatus.RUNNING, True)
    assert store.to_cancel("gateway.a/e1") == [runs.run_id]
    assert store.to_cancel("gateway.b/e1") == []


def test_a_dead_owners_runs_are_taken_over_once(store: RunStore) -> None:
    """What waited has another owner; what ran is lost, with the text that came, and is never run again."""
    ran, waited = created(store, thread_id="t"), created(store, thread_id="t")
    claimed(store)
    store.append_event(ran.run_id, "ha")
    taken = store.take_over("gateway.a/e1", "gateway.b/e1", CLOCK.now_us())
    (lost,) = taken.lost
    assert (taken.adopted, lost.run_id, lost.status, lost.answer, lost.error["code"]) == (
        1,
        ran.run_id,
        RunStatus.ERROR,
        "ha",
        "run_lost",
    )
    assert store.take_over("gateway.a/e1", "gateway.c/e1", 0).adopted == 0
    assert store.owners() == ["gateway.b/e1"]
    assert claimed(store, "gateway.b/e1") == [waited.run_id]


def test_events_are_numbered_and_bounded(store: RunStore) -> None:
    """Numbers count from 1 without a gap; one piece over the bound is refused."""
    run = created(store)
    claimed(store)
    assert [store.append_event(run.run_id, t) for t in ("one", "two", "é")] == [1, 2, 3]
    assert store.events("acme", run.run_id, 1, 10) == [(2, "two"), (3, "é")]
    assert store.events("acme", run.run_id, 0, 1) == [(1, "one")]
    assert store.glance("acme", run.run_id) == (RunStatus.RUNNING, 3)
    with pytest.raises(PayloadTooLargeError, match="10 bytes"):
        store.append_event(run.run_id, "abc")


def test_what_is_kept_is_bounded(store: RunStore) -> None:
    """A tenant may have so many runs that have not ended; those that have go by count and by age."""
    runs = [created(store) for _ in range(5)]
    with pytest.raises(OverloadedError, match="5 runs"):
        created(store)
    created(store, tenant="rival")
    claimed(store)
    for at, run in enumerate(runs):
        store.append_event(run.run_id, "x")
        store.end(run.run_id, RunStatus.SUCCESS, run.created_us + at)
    assert store.prune(CLOCK.now_us()) == 2
    left = [r.run_id for r in store.list_runs("acme", "native", Which(), after="", limit=9)]
    assert left == [r.run_id for r in reversed(runs[2:])]
    assert store.prune(CLOCK.now_us() + 2_000_000) == 3
    assert store.events("acme", runs[4].run_id, 0, 9) == []


def test_tenants_take_turns(store: RunStore) -> None:
    """One tenant's many runs do not keep another's one from beginning."""
    mine = [created(store, tenant="acme") for _ in range(3)]
    other = created(store, tenant="rival")
    assert claimed(store, limit=2) == [mine[0].run_id, other.run_id]


def test_lists_have_pages(store: RunStore) -> None:
    """The newest comes first; a page begins after a run, and may be of one status."""
    runs = [created(store, thread_id=f"t{i % 2}") for i in range(4)]
    claimed(store, limit=1)

    def ids(after: str = "", limit: int = 2, **by: Any) -> list[int]:
        found = store.list_runs("acme", "native", Which(**by), after=after, limit=limit)
        return [[r.run_id for r in runs].index(r.run_id) for r in found]

    assert ids() == [3, 2]
    assert ids(after=runs[2].run_id) == [1, 0]
    assert ids(thread_id="t0") == [2, 0]
    assert ids(status=RunStatus.RUNNING) == [0]
    assert ids(agent_id=runs[0].agent_id, limit=9) == [3, 2, 1, 0]
    assert ids(agent_id="another") == []
    assert ids(updated_after_us=runs[1].updated_us + 10**9) == []
    assert [store.count_runs("acme", "native", Which(thread_id=t)) for t in ("t0", "t1", "t2", None)] == [2, 2, 0, 4]
    large = created(store, messages=[{"role": "user", "content": "x" * 3_000}])
    assert [r.run_id for r in store.list_runs("acme", "native", Which(), after="", limit=9)] == [large.run_id]


def test_only_what_has_ended_is_deleted(store: RunStore) -> None:
    """A run that is under way must be cancelled first; afterwards nothing of it is left."""
    run = created(store)
    with pytest.raises(ConflictError, match="Cancel it first"):
        store.delete("acme", run.run_id)
    store.request_cancel("acme", run.run_id, 0)
    store.delete("acme", run.run_id)
    with pytest.raises(NotFoundError):
        store.get("acme", run.run_id)


def test_documents_have_versions(store: RunStore) -> None:
    """A change with a version is made only on that one; tenants and kinds do not see each other's."""
    first = store.put_document("acme", "thread", "t1", {"a": 1}, 0)
    assert (first.version, store.get_document("acme", "thread", "t1")) == (1, first)
    with pytest.raises(ConflictError, match="exists already"):
        store.put_document("acme", "thread", "t1", {}, 0)
    second = store.put_document("acme", "thread", "t1", {"a": 2}, 1)
    with pytest.raises(ConflictError, match="has version 2, not 1"):
        store.put_document("acme", "thread", "t1", {}, 1)
    with pytest.raises(ConflictError, match="does not exist"):
        store.put_document("acme", "thread", "t9", {}, 1)
    assert (second.version, second.created_us) == (2, first.created_us)
    store.put_document("acme", "thread", "t2", {}, None)
    assert [d.id for d in store.list_documents("acme", "thread", after="t1", limit=9)] == ["t2"]
    for tenant, kind in (("rival", "thread"), ("acme", "assistant")):
        assert store.list_documents(tenant, kind, after="", limit=9) == []
        with pytest.raises(NotFoundError):
            store.delete_document(tenant, kind, "t1")
    store.delete_document("acme", "thread", "t1")
    with pytest.raises(NotFoundError):
        store.get_document("acme", "thread", "t1")


def test_documents_are_bounded(store: RunStore) -> None:
    """By their size, and by how many of a kind a tenant has; those that are there can still be changed."""
    with pytest.raises(PayloadTooLargeError):
        store.put_document("acme", "thread", "t", {"a": "x" * 100}, None)
    for i in range(3):
        store.put_document("acme", "thread", f"t{i}", {}, None)
    with pytest.raises(QuotaExceededError):
        store.put_document("acme", "thread", "t3", {}, None)
    store.put_document("acme", "thread", "t2", {"b": 1}, None)
    store.put_document("rival", "thread", "t3", {}, None)


def test_changes_are_told_in_order(store: RunStore) -> None:
    """Whoever follows a store hears of each run that changed, and of nothing twice."""
    assert store.changed()
    assert not store.changed()
    since = store.last_change()
    a, b = created(store), created(store)
    assert store.changed()
    assert [c.run_id for c in store.changes(since)] == [a.run_id, b.run_id]
    since = store.last_change()
    claimed(store, limit=1)
    store.request_cancel("acme", a.run_id, 0)
    (change,) = store.changes(since)
    assert (change.run_id, change.status, change.cancel_requested, change.number) == (
        a.run_id,
        RunStatus.RUNNING,
        True,
        store.last_change(),
    )


def test_many_writers_lose_nothing(store: RunStore) -> None:
    """Threads that write at once share commits, and one's refusal is no other's."""
    runs = [created(store, tenant=f"t{i}") for i in range(8)]
    claimed(store)
    refused: list[str] = []

    def write(run: Run) -> None:
        for _ in range(5):
            store.append_event(run.run_id, "ab")
        try:
            store.append_event(run.run_id, "c")
        except PayloadTooLargeError:
            refused.append(run.run_id)

    threads = [threading.Thread(target=write, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 8
    assert all(store.get(run.tenant, run.run_id).last_event == 5 for run in runs)


_KILLED = """
import os, sys, signal
from pathlib import Path
from tests.contract.test_run_store import a_run, created
from cluster.runs.sqlite_run_store import SqliteRunStore
store = SqliteRunStore(Path(sys.argv[1]))
run = created(store, run_id="r1")
store.claim("gateway.a/e1", 1, 0)
store.append_event("r1", "said")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_wrote_is_there(tmp_path: Path) -> None:
    """Runs and their events outlive kill -9, and another process sees them."""
    path = tmp_path / "runs.sqlite"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path)], timeout=60, check=False)
    assert killed.returncode == -9
    store = SqliteRunStore(path)
    assert store.get("acme", "r1").status is RunStatus.RUNNING
    assert store.events("acme", "r1", 0, 9) == [(1, "said")]
    store.close()
