"""An agent's books on a disk that is really full: nothing new begins, and how each call ended is written when there is room."""

from __future__ import annotations

from pathlib import Path

from tests.servers.small_disk import run_on_small_disk

CODE = """
import asyncio, sys
from pathlib import Path
from actors import agent_books
from actors.agent_books import AgentBooks, CallBooks
from actors.start_order import StartOrder
from actors.wire import CallOrder
from cluster.agents.record import AgentRecord
from cluster.agents.spec import AgentSpec, Resources
from cluster.clock import FakeClock, SystemClock
from cluster.errors import JournalFullError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.journal.fact import Stream
from cluster.journal.gate import SAMPLE_US
from cluster.journal.usage_event import Outcome, UsageEvent
from cluster.journal.writer import JournalWriter
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from tests.gates import open_gate
from tests.lake_samples import everything

disk = Path(sys.argv[1])
agent_books.PAY_INTERVAL_S = 0.0
resources = Resources(100, 64 << 20)
spec = AgentSpec(AgentId("planner"), "x", (), "scripted:steps", "", (), resources, (), "low", (), 10, 1)
record = AgentRecord(TenantId("acme"), ProjectId("default"), spec, (), "d", "r", "p", "me", 1)

def fill():
    with open(disk / "ballast", "ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass

def refused(act):
    try:
        act()
    except JournalFullError as e:
        return e.detail
    raise AssertionError("it was taken")

async def main():
    journals = disk / "journal"
    with JournalWriter(journals, "agent.acme.planner", 1) as journal:
        metrics = Metrics(disk / "metrics", "agent")
        # The reserve is 64 KiB of the disk's 256.
        clock = FakeClock()
        gate = open_gate(journals, reserve_bytes=64 << 10, clock=clock)
        books = AgentBooks(StartOrder(Settings(home=disk), "acme", record, 1), journal, metrics, SystemClock(), gate)
        calls = [CallBooks(books, CallOrder(f"i{n}", []), 60.0) for n in range(40)]
        for call in calls:
            call.admit()
        fill()
        ended = 0
        try:  # what is left of the journal's last page still takes some
            for call in calls:
                call.settle(Outcome.OK)
                ended += 1
        except JournalFullError:
            pass
        for call in calls[ended + 1:]:
            refused(lambda: call.settle(Outcome.CANCELLED))
        assert ended < 40 and books.running == 0
        assert books.idle_s == 0.0, "what it holds would be lost with it"
        assert "did not take a fact" in refused(CallBooks(books, CallOrder("late", []), 60.0).admit)
        clock.advance(SAMPLE_US)
        assert "kept for what runs" in refused(CallBooks(books, CallOrder("late", []), 60.0).admit)
        (disk / "ballast").unlink()
        async with asyncio.timeout(30):
            while books.idle_s == 0.0 and books._owed:
                await asyncio.sleep(0)
        books.close()
    facts = everything(journals)
    rows = [UsageEvent.from_body(f.body) for f in facts if f.stream == Stream.USAGE]
    assert [r.invocation_id for r in rows] == [f"i{n}" for n in range(40)], rows
    assert sum(f.stream == Stream.CALL for f in facts) == 40
    heard, first_unheard, others = rows[:ended], rows[ended], rows[ended + 1:]
    assert all((r.outcome, r.billable) == (Outcome.OK, True) for r in heard)
    assert (first_unheard.outcome, first_unheard.billable) == (Outcome.LOST, False), "its caller got an error"
    assert {r.outcome for r in others} == {Outcome.CANCELLED}

asyncio.run(main())
print("whole")
"""


def test_threat_64_what_ran_is_recorded_once_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """Controls: AgentBooks.settle and admit. Forty calls end on a full disk: forty rows, in order, each once."""
    assert run_on_small_disk(tmp_path, 256 << 10, CODE) == "whole\n"
