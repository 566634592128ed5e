"""Facts that the disk did not take: held in order, written once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import JournalFullError, StorageError
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.owed import MOST_NOTES, OwedFacts
from cluster.journal.writer import JournalWriter
from tests.lake_samples import AGENT, all_facts


class FullAtTimes(JournalWriter):
    """A journal whose disk is full when the test says so."""

    full = False

    def append(self, fact: Fact) -> int:
        if self.full:
            raise JournalFullError("no room")
        return super().append(fact)


def fact(n: int) -> Fact:
    return Fact(Stream.AUDIT, {"n": n})


def test_what_is_owed_is_written_first_and_once(tmp_path: Path) -> None:
    """In the order in which it happened, before anything new, however often it was tried."""
    with FullAtTimes(tmp_path, AGENT, 1, clock=FakeClock()) as journal:
        owed = OwedFacts(journal)
        owed.write(fact(0))
        journal.full = True
        with pytest.raises(JournalFullError):
            owed.write(fact(1))
        owed.note(fact(2))
        with pytest.raises(JournalFullError):
            owed.pay()
        assert len(owed) == 2
        journal.full = False
        owed.write(fact(3), lambda: fact(-3))
        owed.pay()
        assert len(owed) == 0
    assert [f for _, f in all_facts(tmp_path, JournalId(AGENT, 1))] == [fact(n) for n in range(4)]


def test_notes_are_bounded(tmp_path: Path) -> None:
    """What anybody can cause does not fill the memory: one more is an error. The last fact of a call is held all the same."""
    with FullAtTimes(tmp_path, AGENT, 1, clock=FakeClock()) as journal:
        owed = OwedFacts(journal)
        journal.full = True
        for n in range(MOST_NOTES):
            owed.note(fact(n))
        with pytest.raises(StorageError):
            owed.note(fact(-1))
        with pytest.raises(StorageError):
            owed.write(fact(MOST_NOTES))
        assert len(owed) == MOST_NOTES + 1


def test_threads_do_not_pay_twice(tmp_path: Path) -> None:
    """Control: the lock. A last fact that is written twice is billed twice."""
    with FullAtTimes(tmp_path, AGENT, 1, clock=FakeClock()) as journal:
        owed = OwedFacts(journal)
        journal.full = True
        for n in range(500):
            owed.note(fact(n))
        journal.full = False
        start = threading.Barrier(4)

        def pay() -> None:
            start.wait()
            owed.pay()

        threads = [threading.Thread(target=pay) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert [f for _, f in all_facts(tmp_path, JournalId(AGENT, 1))] == [fact(n) for n in range(500)]
