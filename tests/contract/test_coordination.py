"""What every backend of the coordination port does."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.coordination.coordination import (
    ABSENT,
    MAX_VALUE_BYTES,
    Check,
    Coordination,
    CoordinationConflictError,
    Create,
    Delete,
    Node,
    Op,
    Set,
)
from cluster.coordination.epochs import current_epoch, fence, next_epoch
from cluster.coordination.journals import register_journal, registered_epochs
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.errors import InternalError, InvalidRequestError, PayloadTooLargeError, UnavailableError
from tests.sizes import soak

BACKENDS = ["sqlite"]


def open_backend(name: str, place: str) -> Coordination:
    """Open one backend; a process of a test opens its own by the same two words."""
    assert name == "sqlite"
    return SqliteCoordination(Path(place))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    return request.param, str(tmp_path / "coordination.sqlite")


@pytest.fixture
def store(backend: tuple[str, str]) -> Iterator[Coordination]:
    store = open_backend(*backend)
    yield store
    store.close()


def refused(store: Coordination, *ops: Op) -> CoordinationConflictError:
    with pytest.raises(CoordinationConflictError) as conflict:
        store.transact(ops)
    return conflict.value


def test_a_node_has_a_value_and_a_version(store: Coordination) -> None:
    """Created with version 0; each change adds 1; deleted it is gone, and begins at 0 again."""
    assert store.get("/a/b") is None
    store.transact([Create("/a/b", b"one")])
    assert store.get("/a/b") == Node(b"one", 0)
    store.transact([Set("/a/b", b"two", 0)])
    store.transact([Set("/a/b", b"")])
    assert store.get("/a/b") == Node(b"", 2)
    store.transact([Delete("/a/b", 2)])
    assert store.get("/a/b") is None
    store.transact([Create("/a/b", b"\0\xff")])
    assert store.get("/a/b") == Node(b"\0\xff", 0)


def test_all_or_nothing(store: Coordination) -> None:
    """When the last operation does not hold, none was done, and the error names it."""
    store.transact([Create("/a/b", b"1")])
    error = refused(store, Create("/x/y", b""), Set("/a/b", b"2", 0), Delete("/a/b", 1), Check("/a/b", 0))
    assert (error.failed, error.path) == (3, "/a/b")
    assert store.get("/a/b") == Node(b"1", 0)
    assert store.get("/x/y") is None
    # Nor is anything left that would stand in the way of doing it right.
    store.transact([Create("/x/y", b"")])


@pytest.mark.parametrize(
    "op",
    [
        Create("/a/b", b""),
        Set("/a/b", b"", 1),
        Set("/a/none", b""),
        Set("/a/none", b"", 0),
        Delete("/a/b", 7),
        Delete("/a/none"),
        Check("/a/b", 1),
        Check("/a/b", ABSENT),
        Check("/a/none", 0),
        Create("/a", b""),
        Set("/a", b""),
        Delete("/a"),
        Create("/a/b/c", b""),
    ],
    ids=str,
)
def test_what_does_not_hold_conflicts(store: Coordination, op: Op) -> None:
    """Existing, missing, another version, a folder, below a node: each is a conflict that survives pickling."""
    store.transact([Create("/a/b", b"")])
    error = pickle.loads(pickle.dumps(refused(store, op)))
    assert (error.failed, error.path, error.status) == (0, op.path, 409)
    assert store.get("/a/b") == Node(b"", 0)
    store.transact([Check("/a/b", 0), Check("/a/none", ABSENT), Check("/a", ABSENT)])


def test_operations_see_the_ones_before_them(store: Coordination) -> None:
    """A transaction is done in order."""
    store.transact([Create("/a/b", b"1"), Check("/a/b", 0), Set("/a/b", b"2", 0), Check("/a/b", 1)])
    store.transact([Delete("/a/b"), Check("/a/b", ABSENT), Create("/a/b", b"3")])
    assert store.get("/a/b") == Node(b"3", 0)


def test_children_come_in_order_of_their_bytes_and_in_pages(store: Coordination) -> None:
    """Names and folders directly below, after a name, up to a limit; folders hold no value and stay."""
    names = sorted(["b", "a", "B", "_x", "10", "9", "a-b", "a.b"])
    store.transact([Create(f"/p/{n}", b"") for n in names] + [Create("/p/folder/x", b"")])
    everything = sorted([*names, "folder"])
    assert store.children("/p") == everything
    pages: list[str] = []
    while page := store.children("/p", after=pages[-1] if pages else "", limit=2):
        assert len(page) <= 2
        pages += page
    assert pages == everything
    assert store.children("/p", limit=0) == store.children("/none") == store.children("/p/a") == []
    assert store.get("/p/folder") is None
    store.transact([Delete("/p/folder/x")])
    assert store.children("/p/folder") == []
    assert "folder" in store.children("/p")


@pytest.mark.parametrize(
    "path", ["", "/", "a", "/a/", "//a", "/a//b", "/a/../b", "/.", "/é", "/a b", "/a\0", "/a\n", "/" + "a" * 256]
)
def test_an_odd_path_is_refused(store: Coordination, path: str) -> None:
    """What is not of the grammar reaches no store."""
    for use in (lambda: store.get(path), lambda: store.children(path), lambda: store.transact([Create(path, b"")])):
        with pytest.raises(InvalidRequestError):
            use()


def test_transactions_and_values_are_bounded(store: Coordination) -> None:
    """None, too many operations, and too large a value are refused; the largest is taken."""
    for ops in ([], [Create(f"/a/{i}", b"") for i in range(129)]):
        with pytest.raises(InvalidRequestError):
            store.transact(ops)
    with pytest.raises(PayloadTooLargeError):
        store.transact([Create("/a/b", b"x" * (MAX_VALUE_BYTES + 1))])
    store.transact([Create("/a/b", b"x" * MAX_VALUE_BYTES)])


def test_another_client_sees_what_was_done(store: Coordination, backend: tuple[str, str]) -> None:
    """What one client wrote, another reads, changes, and finds again after both were closed."""
    store.transact([Create("/a/b", b"1")])
    other = open_backend(*backend)
    other.transact([Set("/a/b", b"2", 0)])
    other.close()
    assert store.get("/a/b") == Node(b"2", 1)
    store.close()
    third = open_backend(*backend)
    assert third.get("/a/b") == Node(b"2", 1)
    third.close()


def test_a_closed_store_says_so(store: Coordination) -> None:
    """After close every use raises UnavailableError; closing twice does nothing."""
    store.close()
    store.close()
    for use in (lambda: store.get("/a"), lambda: store.children("/a"), lambda: store.transact([Create("/a", b"")])):
        with pytest.raises(UnavailableError):
            use()


def count_up(store: Coordination, times: int) -> None:
    """Add 1 to the counter `times` times, each by reading it and setting what was read plus one."""
    for _ in range(times):
        while True:
            node = store.get("/counter")
            # The check reads before anything is written, as a fence does.
            ops: list[Op] = [Check("/counter", node.version if node else ABSENT)]
            ops.append(Set("/counter", str(int(node.value) + 1).encode()) if node else Create("/counter", b"1"))
            try:
                store.transact(ops)
            except CoordinationConflictError:
                continue
            break


def in_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_no_update_is_lost_between_threads(store: Coordination) -> None:
    """Threads that count up together count exactly, and one that conflicts does not disturb those it shares a commit with."""
    times = soak(25, 500)

    def work(number: int) -> None:
        count_up(store, times)
        store.transact([Create(f"/mine/{number}", b"")])
        with pytest.raises(CoordinationConflictError):
            store.transact([Create(f"/mine/{number}", b"")])

    in_threads(work, 8)
    node = store.get("/counter")
    assert node == Node(str(8 * times).encode(), 8 * times - 1)
    assert len(store.children("/mine")) == 8


CHILD = "import json, sys; from tests.contract import test_coordination as t; t.child(*json.loads(sys.argv[1]))"


def child(name: str, place: str, what: str, times: int) -> None:
    """What a process of these tests does; its last line is its result."""
    store = open_backend(name, place)
    if what == "count":
        count_up(store, times)
        print(json.dumps([]))
    elif what == "epochs":
        print(json.dumps([next_epoch(store, "race") for _ in range(times)]))
    elif what == "journals":
        print(json.dumps([register_journal(store, "race", "n") for _ in range(times)]))
    else:
        if (pid := os.fork()) == 0:
            try:
                store.get("/a")
            except InternalError:
                os._exit(1)
            os._exit(0)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]))
    store.close()


def in_processes(backend: tuple[str, str], what: str, times: int, count: int) -> list[int]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps([*backend, what, times])], stdout=subprocess.PIPE, env=os.environ
        )
        for _ in range(count)
    ]
    results = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * count
    return [number for result in results for number in json.loads(result)]


def test_no_update_is_lost_between_processes(backend: tuple[str, str]) -> None:
    """Processes that open the store at the same moment, also for the first time, count exactly."""
    times = soak(20, 500)
    in_processes(backend, "count", times, 4)
    store = open_backend(*backend)
    node = store.get("/counter")
    store.close()
    assert node is not None
    assert int(node.value) == 4 * times


def test_a_client_goes_on_seeing_what_other_processes_do_when_they_come_and_go(backend: tuple[str, str]) -> None:
    """Also beside a second client of its own process: what one of ours closes takes nothing away from another."""
    store, beside = open_backend(*backend), open_backend(*backend)
    for times in range(1, 4):
        in_processes(backend, "count", 1, 1)
        seen = store.get("/counter")
        assert seen is not None
        assert int(seen.value) == times
        open_backend(*backend).close()
    store.transact([Create("/a/1", b"")])
    assert beside.children("/a") == ["1"]
    store.close()
    beside.close()


def test_an_epoch_is_given_once(backend: tuple[str, str]) -> None:
    """Processes that begin lives of one name get each number exactly once."""
    times = soak(8, 200)
    assert sorted(in_processes(backend, "epochs", times, 3)) == list(range(1, 3 * times + 1))


def test_a_journal_is_registered_under_an_epoch_of_its_own(backend: tuple[str, str]) -> None:
    """Processes that register journals of one writer get each epoch once, and all are on the list."""
    times = soak(5, 100)
    given = sorted(in_processes(backend, "journals", times, 3))
    store = open_backend(*backend)
    assert given == registered_epochs(store, "race") == list(range(1, 3 * times + 1))
    store.close()


def test_a_deposed_writer_changes_nothing(store: Coordination) -> None:
    """A transaction that carries the fence of an earlier epoch conflicts once a later one has begun, and is not done."""
    first = next_epoch(store, "governor")
    store.transact([fence("governor", first), Create("/a/1", b"")])
    second = next_epoch(store, "governor")
    error = refused(store, fence("governor", first), Create("/a/2", b""))
    assert (error.failed, error.path) == (0, "/epochs/governor")
    assert store.get("/a/2") is None
    store.transact([fence("governor", second), Create("/a/2", b"")])
    assert (first, second, current_epoch(store, "governor"), current_epoch(store, "other")) == (1, 2, 2, 0)


def test_a_client_does_not_cross_a_fork(backend: tuple[str, str]) -> None:
    """A forked child that uses its parent's client gets an error and not its parent's connection."""
    assert in_processes(backend, "fork", 1, 1) == [1]


def test_a_store_that_another_process_closed_is_still_one_store(tmp_path: Path) -> None:
    """Two stores of one process over one file, and a third process that comes and goes: what is written then is seen by all."""
    path = tmp_path / "coordination.sqlite"
    first = SqliteCoordination(path)
    first.transact([Create("/a", b"1")])
    SqliteCoordination(path).close()
    look = (
        "import sys; from pathlib import Path; from cluster.coordination.sqlite_coordination import SqliteCoordination as S; "
        "s = S(Path(sys.argv[1])); node = s.get(sys.argv[2]); s.close(); print(node and node.value.decode())"
    )

    def seen(node: str) -> str:
        command = [sys.executable, "-c", look, str(path), node]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert seen("/a") == "1"
    first.transact([Create("/b", b"2")])
    assert seen("/b") == "2"
    first.close()
