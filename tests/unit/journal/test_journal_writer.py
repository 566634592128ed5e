"""The writer of a journal: one owner, one write a fact, and nothing half when the disk refuses."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import ConflictError, InvalidRequestError, PayloadTooLargeError, StorageError
from cluster.journal.fact import MAX_FACT_BYTES, Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals, next_epoch
from cluster.journal.reader import JournalReader, is_alive
from cluster.journal.verify import verify_journal
from cluster.journal.writer import JournalWriter
from tests.lake_samples import AGENT, all_facts

JOURNAL = JournalId(AGENT, 1)


def fact(n: int) -> Fact:
    return Fact(Stream.AUDIT, {"n": n})


def test_facts_are_readable_before_any_sync(tmp_path: Path) -> None:
    """When append returns, another process can read the fact; numbers count from 1."""
    with JournalWriter(tmp_path, AGENT, 1, clock=FakeClock(), sync_ms=60_000) as writer:
        assert writer.append(fact(0)) == 1
        assert writer.append_many([fact(1), fact(2)]) == 3
        assert writer.append_many([]) == 3
        assert all_facts(tmp_path, JOURNAL) == [(1, fact(0)), (2, fact(1)), (3, fact(2))]
        assert writer.synced_seq == 0
        assert writer.sync() == writer.synced_seq == writer.last_seq == 3


def test_dirty_facts_are_synced_by_themselves(tmp_path: Path) -> None:
    """Control: the background sync. Nobody asks, and within `sync_ms` the fact is on disk."""
    with JournalWriter(tmp_path, AGENT, 1, clock=FakeClock(), sync_ms=1) as writer:
        for n in range(3):
            seq = writer.append(fact(n))
            # Bounded by the test's own limit, not by a sleep: another thread does it.
            spins = 0
            while writer.synced_seq < seq:
                spins += 1
                threading.Event().wait(0.001)
                assert spins < 10_000


def test_an_epoch_is_written_once(tmp_path: Path) -> None:
    """Control: JournalWriter._create. Neither the same epoch nor an earlier one is ever opened again, alive or dead."""
    with JournalWriter(tmp_path, AGENT, 5, clock=FakeClock()) as writer:
        writer.append(fact(0))
        for epoch in (5, 4):
            with pytest.raises(ConflictError, match=r"planner-001/e"):
                JournalWriter(tmp_path, AGENT, epoch, clock=FakeClock())
    with pytest.raises(ConflictError):
        JournalWriter(tmp_path, AGENT, 5, clock=FakeClock())
    assert next_epoch(tmp_path, AGENT) == 6
    JournalWriter(tmp_path, AGENT, 6, clock=FakeClock()).close()
    assert list_journals(tmp_path) == [JournalId(AGENT, 5), JournalId(AGENT, 6)]
    assert [p.name for p in (tmp_path / AGENT).iterdir() if p.name.startswith(".")] == []


def test_of_many_who_open_one_epoch_one_gets_it(tmp_path: Path) -> None:
    """Two processes that believe to be the same life cannot both write."""
    start, got, refused = threading.Barrier(8), list[JournalWriter](), list[ConflictError]()

    def race() -> None:
        start.wait()
        try:
            got.append(JournalWriter(tmp_path, AGENT, 1, clock=FakeClock()))
        except ConflictError as e:
            refused.append(e)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].close()


@pytest.mark.parametrize("name", ["", ".", "a..b", "Agent.x", "a/b", "../a", "a.b.c.d.e.f.g", "a\n", "ä"])
def test_a_writer_id_outside_the_grammar_is_refused(tmp_path: Path, name: str) -> None:
    """It becomes a folder's name."""
    with pytest.raises(InvalidRequestError):
        JournalWriter(tmp_path, name, 1, clock=FakeClock())
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_are_the_owners_only(tmp_path: Path) -> None:
    """Nobody else on the machine may read what agents did."""
    with JournalWriter(tmp_path / "j", AGENT, 1, clock=FakeClock()) as writer:
        writer.append(fact(0))
    for path in (tmp_path / "j" / AGENT).rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_lock_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    """Held for the writer's life and free after it; looking does not take it."""
    writer = JournalWriter(tmp_path, AGENT, 1, clock=FakeClock())
    assert [is_alive(tmp_path, JOURNAL) for _ in range(3)] == [True] * 3
    writer.close()
    writer.close()
    assert not is_alive(tmp_path, JOURNAL)
    assert not is_alive(tmp_path, JournalId(AGENT, 2))


def test_a_closed_journal_takes_no_more(tmp_path: Path) -> None:
    """And says so."""
    writer = JournalWriter(tmp_path, AGENT, 1, clock=FakeClock())
    writer.close()
    for act in (lambda: writer.append(fact(0)), writer.sync):
        with pytest.raises(StorageError, match="closed"):
            act()


def test_threads_write_one_chain(tmp_path: Path) -> None:
    """Facts of many threads, also in groups and over segment ends, are each there once and in the order of their numbers."""
    numbers: dict[int, int] = {}
    with JournalWriter(tmp_path, AGENT, 1, clock=FakeClock(), sync_ms=1, segment_bytes=4_000) as writer:

        def write(base: int) -> None:
            for n in range(base, base + 100):
                numbers[n] = writer.append(fact(n))
                if n % 10 == 0:
                    writer.sync()

        threads = [threading.Thread(target=write, args=(b * 1_000,)) for b in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    found = {f.body["n"]: seq for seq, f in all_facts(tmp_path, JOURNAL)}
    assert found == numbers
    assert sorted(found.values()) == list(range(1, 401))


def test_a_fact_that_cannot_be_written_leaves_no_gap(tmp_path: Path) -> None:
    """What is refused before the write takes no number."""
    with JournalWriter(tmp_path, AGENT, 1, clock=FakeClock()) as writer:
        writer.append(fact(0))
        with pytest.raises(InvalidRequestError):
            writer.append(Fact(Stream.AUDIT, {"n": object()}))
        with pytest.raises(PayloadTooLargeError):
            writer.append_many([fact(1), Fact(Stream.AUDIT, {"n": "x" * MAX_FACT_BYTES})])
        assert writer.append(fact(1)) == 2
    assert [f for _, f in all_facts(tmp_path, JOURNAL)] == [fact(0), fact(1)]


def test_a_full_disk_leaves_no_half_fact(tmp_path: Path) -> None:
    """Control: JournalWriter._undo. A short write is taken back and refused; when there is room again, writing goes on.

    A real limit on the size of files makes the write short, as a full disk does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = JournalWriter(tmp_path, AGENT, 1, clock=FakeClock(), sync_ms=60_000)
    path = JOURNAL.folder(tmp_path) / "00000000000000000001.seg"
    try:
        kept = [fact(writer.append(fact(1)))]
        for room in (1, 30, 47, 48, 49, 60):
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, before[1]))
            with pytest.raises(StorageError, match="did not take a fact"):
                writer.append(Fact(Stream.AUDIT, {"long": "x" * 100}))
            assert path.stat().st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            kept.append(fact(writer.last_seq + 1))
            writer.append(kept[-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        writer.close()
    assert [f for _, f in all_facts(tmp_path, JOURNAL)] == kept
    assert verify_journal(tmp_path, JOURNAL).error == ""


def test_a_write_that_cannot_be_taken_back_ends_the_journal(tmp_path: Path) -> None:
    """Fails closed: behind half a record every later one would be hidden, so none is taken any more."""
    writer = JournalWriter(tmp_path, AGENT, 1, clock=FakeClock(), sync_ms=60_000)
    writer.append(fact(0))
    # A descriptor that can neither be written nor cut.
    read_only = os.open(JOURNAL.folder(tmp_path) / "00000000000000000001.seg", os.O_RDONLY)
    os.dup2(read_only, writer._fd, inheritable=False)
    os.close(read_only)
    for _ in range(2):
        with pytest.raises(StorageError, match="could not be undone"):
            writer.append(fact(1))
    with pytest.raises(StorageError):
        writer.sync()
    writer.close()
    assert [f for _, f in all_facts(tmp_path, JOURNAL)] == [fact(0)]


def test_a_fork_neither_writes_nor_keeps_the_lock(tmp_path: Path) -> None:
    """Control: JournalWriter._forget_in_child. A child that outlives its parent must not make it look alive."""
    code = f"""
        import os, sys, time
        from pathlib import Path
        from cluster.journal.fact import Fact, Stream
        from cluster.journal.writer import JournalWriter
        from cluster.errors import StorageError
        writer = JournalWriter(Path({str(tmp_path)!r}), {AGENT!r}, 1)
        writer.append(Fact(Stream.AUDIT, {{"n": 0}}))
        child = os.fork()
        if child == 0:
            try:
                writer.append(Fact(Stream.AUDIT, {{"n": 1}}))
                print("written", flush=True)
            except StorageError:
                print("refused", flush=True)
            sys.stdin.readline()
            os._exit(0)
        os.kill(os.getpid(), 9)
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "refused\n"
    process.wait()
    assert not is_alive(tmp_path, JOURNAL)
    process.stdin.close()
    assert process.stdout.read() == ""
    process.stdout.close()
    assert [f for _, f in all_facts(tmp_path, JOURNAL)] == [fact(0)]


def test_a_program_that_it_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Control: O_CLOEXEC. Tools and other children outlive their agent."""
    writer = JournalWriter(tmp_path, AGENT, 1, clock=FakeClock())
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    writer.close()
    assert not is_alive(tmp_path, JOURNAL)
    assert child.stdin is not None
    child.stdin.close()
    child.wait()


def test_names_that_are_no_journals_are_passed_over(tmp_path: Path) -> None:
    """One strange folder must not stop the shipper."""
    for name in ("not a writer/e1", f"{AGENT}/e01", f"{AGENT}/x", f"{AGENT}/.e2.1.2", ".hidden/e1", f"{AGENT}/e99999999999"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert list_journals(tmp_path) == []
    assert list_journals(tmp_path / "nowhere") == []
    assert JournalReader(tmp_path, JOURNAL).read() == []
