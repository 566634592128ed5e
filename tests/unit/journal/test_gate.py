"""Whether a node takes on anything new: what each process decides by itself from a file and the disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import JournalFullError
from cluster.journal.backlog import FILE_NAME, Backlog
from cluster.journal.gate import SAMPLE_US, SILENT_US, JournalGate, why_closed
from cluster.journal.journal_id import list_journals

LIMIT, RESERVE, ROOM = 1_000, 500, 1 << 40


def closed(waiting: int = 0, *, free: int = ROOM, age_us: int = 0, was_closed: bool = False) -> bool:
    found = why_closed(
        Backlog(waiting, 10_000_000), free, 10_000_000 + age_us, limit_bytes=LIMIT, reserve_bytes=RESERVE, was_closed=was_closed
    )
    return found is not None


def test_threat_64_at_the_limit_nothing_new_is_admitted() -> None:
    """Not a byte before; and once closed, a tenth must be free before it opens again."""
    assert not closed(LIMIT - 1)
    assert closed(LIMIT)
    assert closed(LIMIT - 100, was_closed=True)
    assert not closed(LIMIT - 101, was_closed=True)


def test_what_runs_has_its_space_kept() -> None:
    """The gate closes while there is still room for the last facts of everything that was admitted."""
    assert not closed(free=RESERVE)
    assert closed(free=RESERVE - 1)
    assert closed(free=RESERVE + 49, was_closed=True)
    assert not closed(free=RESERVE + 50, was_closed=True)


def test_a_shipper_that_says_nothing_is_no_reason_to_hope() -> None:
    """Fails closed: a file that is missing, old, or from before a restart of the machine says nothing."""
    assert not closed(age_us=SILENT_US)
    assert closed(age_us=SILENT_US + 1)
    assert closed(age_us=-1)
    assert why_closed(None, ROOM, 0, limit_bytes=LIMIT, reserve_bytes=RESERVE, was_closed=False) is not None


def test_a_refusal_says_what_why_and_when_to_come_back(tmp_path: Path) -> None:
    """503 for people and programs: the numbers, since when, and a time within bounds."""
    clock = FakeClock()
    gate = JournalGate(tmp_path, limit_bytes=3 << 20, reserve_bytes=0, clock=clock)
    Backlog(3 << 20, clock.monotonic_us(), stuck_since_us=1_790_000_000_000_000, retry_after_s=2.5).write(tmp_path)
    with pytest.raises(JournalFullError) as refused:
        gate.check()
    error = refused.value
    assert (error.status, error.code, error.retryable, error.retry_after_s) == (503, "journal_full", True, 3.5)
    assert "3.0 MiB of facts wait for the lake, and 3.0 MiB may; nothing was shipped since 2026-09-21" in error.detail
    assert "Retry later" in error.hint
    status = gate.status()
    assert (status["admits"], status["backlog_bytes"], status["limit_bytes"]) == (False, 3 << 20, 3 << 20)
    assert status["nothing_shipped_since"].startswith("2026-09-21T")


def test_the_disk_is_asked(tmp_path: Path) -> None:
    """More kept than there is: closed, and so is a folder that is not there."""
    clock = FakeClock()
    Backlog(0, clock.monotonic_us()).write(tmp_path)
    with pytest.raises(JournalFullError, match="MiB free"):
        JournalGate(tmp_path, limit_bytes=LIMIT, reserve_bytes=1 << 60, clock=clock).check()
    with pytest.raises(JournalFullError, match=r"has 0\.0 MiB free"):
        JournalGate(tmp_path / "gone", limit_bytes=LIMIT, reserve_bytes=1, clock=clock).check()


def test_it_looks_once_a_second_and_tells_each_change_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A call costs a look at the clock; the log has a line for a change, not for each call."""
    clock = FakeClock()
    gate = JournalGate(tmp_path, limit_bytes=LIMIT, reserve_bytes=0, clock=clock)
    caplog.set_level(logging.WARNING)
    Backlog(0, clock.monotonic_us()).write(tmp_path)
    gate.check()
    Backlog(LIMIT, clock.monotonic_us()).write(tmp_path)
    gate.check()
    clock.advance(SAMPLE_US)
    for _ in range(3):
        with pytest.raises(JournalFullError):
            gate.check()
        clock.advance(SAMPLE_US)
    (tmp_path / FILE_NAME).write_text("half a fi")
    with pytest.raises(JournalFullError, match="shipper does not say"):
        gate.check()
    Backlog(0, clock.monotonic_us()).write(tmp_path)
    clock.advance(SAMPLE_US)
    for _ in range(3):
        gate.check()
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "nothing new is admitted here",
        "new work is admitted here again",
    ]


def test_a_status_says_what_is_and_not_what_was(tmp_path: Path) -> None:
    """An agent's process may have looked a moment later, and refused: who then asks for the status hears the same."""
    clock = FakeClock()
    gate = JournalGate(tmp_path, limit_bytes=LIMIT, reserve_bytes=0, clock=clock)
    Backlog(0, clock.monotonic_us()).write(tmp_path)
    gate.check()
    Backlog(LIMIT, clock.monotonic_us()).write(tmp_path)
    said = gate.status()
    assert (said["admits"], said["backlog_bytes"]) == (False, LIMIT)


@pytest.mark.parametrize("text", ['{"waiting_bytes": "0", "measured_us": 0}', '{"waiting_bytes": 0, "measured_us": null}', "[]"])
def test_what_is_no_count_is_no_reason_to_hope(tmp_path: Path, text: str) -> None:
    """Fails closed, however often it is asked."""
    (tmp_path / FILE_NAME).write_text(text)
    gate = JournalGate(tmp_path, limit_bytes=LIMIT, reserve_bytes=0, clock=FakeClock())
    for _ in range(2):
        with pytest.raises(JournalFullError, match="shipper does not say"):
            gate.check()


def test_a_look_that_failed_admits_nobody_who_asks_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong: it is looked again, and not taken for an open gate."""

    def fails(directory: Path) -> Backlog:
        raise MemoryError

    clock = FakeClock()
    Backlog(LIMIT, clock.monotonic_us()).write(tmp_path)
    gate = JournalGate(tmp_path, limit_bytes=LIMIT, reserve_bytes=0, clock=clock)
    with monkeypatch.context() as broken:
        broken.setattr(Backlog, "read", fails)
        for _ in range(2):
            with pytest.raises(MemoryError):
                gate.check()
    with pytest.raises(JournalFullError):
        gate.check()


def test_the_file_is_no_journal(tmp_path: Path) -> None:
    """It lies among the journals, and nobody ships it."""
    Backlog(1, 2).write(tmp_path)
    assert list_journals(tmp_path) == []
    assert Backlog.read(tmp_path) == Backlog(1, 2)
