"""What a node left that is gone comes into the lake from another one, and only then. Journals and lake are real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.orphaned_journals import OrphanedJournals
from cluster import wiring
from cluster.clock import SystemClock
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import list_journals
from cluster.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path)


@pytest.fixture
def orphans(settings: Settings) -> Iterator[OrphanedJournals]:
    opened = OrphanedJournals(settings)
    yield opened
    opened.close()


def write(settings: Settings, node: str, reason: str) -> None:
    """Leave one fact in a journal of a node."""
    event = AuditEvent.new(SystemClock(), AuditAction.TOOL_REFUSE, AuditOutcome.DENIED, actor="test", reason=reason)
    with wiring.open_journal(settings.of_node(node), "agent.default.x") as journal:
        journal.append(Fact(Stream.AUDIT, event.to_body()))


def shipped(settings: Settings) -> list[str]:
    """Return the reasons in the lake, with every duplicate."""
    files = (settings.home / "lake" / "audit").rglob("*.parquet")
    rows = [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]
    return sorted(row["reason"] for row in rows if row["action"] == AuditAction.TOOL_REFUSE)


def test_what_a_lost_node_left_is_shipped_once(settings: Settings, orphans: OrphanedJournals) -> None:
    """Until then a node that is there ships its own; afterwards nothing is left open, and steps more change nothing."""
    write(settings, "w1", "first")
    assert orphans.step({"w1"}) == {}
    assert shipped(settings) == []
    for _ in range(4):
        assert orphans.step(()) == {}
    assert shipped(settings) == ["first"]
    lives = [j for j in list_journals(settings.of_node("w1").journal_dir) if j.writer_id == "shipper.w1"]
    assert len(lives) == 1


def test_a_node_that_comes_back_ships_its_own_again(settings: Settings, orphans: OrphanedJournals) -> None:
    """Its folder is let go, and when it is gone once more, what it left since is shipped too."""
    write(settings, "w1", "first")
    orphans.step(())
    orphans.step({"w1"})
    with wiring.build_shipper(settings.of_node("w1")) as own:
        write(settings, "w1", "second")
        own.step()
        write(settings, "w1", "third")
    orphans.step(())
    assert shipped(settings) == ["first", "second", "third"]


def test_a_shipper_that_still_lives_is_not_pushed_aside(settings: Settings, orphans: OrphanedJournals) -> None:
    """Who may ship is decided by the folder's lock: what waits is named with its reason, and leaves no journal behind."""
    write(settings, "w1", "first")
    with wiring.build_shipper(settings.of_node("w1")):
        before = list_journals(settings.of_node("w1").journal_dir)
        assert "still lives" in orphans.step(())["w1"]
        assert list_journals(settings.of_node("w1").journal_dir) == before
    assert shipped(settings) == []
    assert orphans.step(()) == {}
    assert shipped(settings) == ["first"]


def test_the_journal_is_registered_on_the_node_that_it_is_of(settings: Settings) -> None:
    """So that a node whose folder is lost is missed by name."""
    from cluster.coordination.journals import journal_node

    write(settings, "w1", "first")
    write(settings, "", "second")
    store = wiring.open_coordination(settings)
    found = [journal_node(store, "agent.default.x", epoch) for epoch in (1, 2, 3)]
    store.close()
    assert found == ["w1", (settings.home / "node-name").read_text(), None]
