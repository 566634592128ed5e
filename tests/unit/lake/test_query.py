"""Usage rows as the command line shows them."""

from __future__ import annotations

from datetime import UTC, timedelta
from pathlib import Path

import pytest

from cluster.clock import FakeClock, utc
from cluster.errors import ConfigurationError, InvalidRequestError
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Fact, Stream
from cluster.journal.usage_event import lost_event
from cluster.journal.writer import JournalWriter
from cluster.lake.query import audit_rows, usage_rows
from cluster.lake.ship import Shipper
from cluster.settings import Settings
from cluster.wiring import open_object_store
from tests.lake_samples import AGENT, START_US, admitted, final, usage_fact


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def ship(settings: Settings, *facts: Fact) -> None:
    clock = FakeClock()
    with Shipper.open(settings.journal_dir, open_object_store(settings), "n1", clock=clock) as shipper:
        epoch = shipper._writer.epoch
        with JournalWriter(settings.journal_dir, AGENT, epoch, clock=clock) as writer:
            writer.append_many(facts)
        shipper.step()


def test_rows_are_the_newest_first_with_aware_times(settings: Settings) -> None:
    """All columns of the lake, as plain Python values, at most `limit` of them."""
    events = [final(event_time=START_US + i, tokens_output=i) for i in range(5)]
    ship(settings, *map(usage_fact, events))
    rows = usage_rows(settings, limit=3)
    assert [r["tokens_output"] for r in rows] == [4, 3, 2]
    assert rows[0]["event_time"] == utc(START_US + 4)
    assert rows[0]["event_time"].tzinfo is UTC
    assert (rows[0]["billable"], rows[0]["trace_id"], rows[0]["writer_seq"]) == (True, None, 5)


def test_rows_are_chosen_by_tenant_agent_invocation_and_time(settings: Settings) -> None:
    """Threat 24: a tenant's rows are its own."""
    ship(
        settings,
        usage_fact(final(tenant_id="acme", agent_id="a", event_time=START_US)),
        usage_fact(final(tenant_id="acme", agent_id="b", event_time=START_US + 60_000_000, invocation_id="wanted")),
        usage_fact(final(tenant_id="other", agent_id="a", event_time=START_US + 60_000_000)),
    )
    assert [r["agent_id"] for r in usage_rows(settings, tenant_id="acme")] == ["b", "a"]
    assert [r["tenant_id"] for r in usage_rows(settings, agent_id="a")] == ["other", "acme"]
    assert [r["tenant_id"] for r in usage_rows(settings, tenant_id="acme", agent_id="a")] == ["acme"]
    assert [r["agent_id"] for r in usage_rows(settings, invocation_id="wanted")] == ["b"]
    assert len(usage_rows(settings, since=utc(START_US) + timedelta(seconds=60))) == 2
    assert usage_rows(settings, agent_id="a' or 1=1 --") == []


def test_an_event_that_was_shipped_twice_is_one_row(settings: Settings) -> None:
    """Threat 71. Control: the query takes the first of each event_id."""
    event = final()
    ship(settings, usage_fact(event), usage_fact(event))
    ship(settings, usage_fact(event))
    assert len(usage_rows(settings)) == 1


def test_a_final_event_supersedes_a_loss(settings: Settings) -> None:
    """By reservation; a loss without a final event stays."""
    found, gone = admitted(), admitted()
    ship(settings, usage_fact(lost_event(found)), usage_fact(lost_event(gone)))
    assert [r["kind"] for r in usage_rows(settings)] == ["lost", "lost"]
    ship(settings, usage_fact(final(found)))
    assert {r["reservation_id"]: r["kind"] for r in usage_rows(settings)} == {
        found.reservation_id: "final",
        gone.reservation_id: "lost",
    }


def test_a_lake_without_usage_has_no_rows(settings: Settings) -> None:
    """Before the first call it is not an error to ask."""
    assert usage_rows(settings) == []
    assert audit_rows(settings) == []


def test_files_in_the_making_and_quarantine_are_not_read(settings: Settings, tmp_path: Path) -> None:
    """Only whole segments count."""
    ship(settings, usage_fact(final()))
    raw = next((tmp_path / "lake").rglob("e1-*.parquet"))
    raw.with_name(".half.tmp").write_bytes(b"half")
    copy = tmp_path / "lake" / "usage" / "quarantine" / "v1" / "x.parquet"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(raw.read_bytes())
    assert len(usage_rows(settings)) == 1


def test_audit_rows_are_chosen_by_action(settings: Settings) -> None:
    """Newest first, beside those of the shipper itself."""
    clock = FakeClock()
    events = [
        AuditEvent.new(clock, a, "denied", actor="x", tenant_id="acme")
        for a in (AuditAction.TOOL_REFUSE, AuditAction.GATEWAY_REFUSE)
    ]
    ship(settings, *(Fact(Stream.AUDIT, e.to_body()) for e in events))
    assert [r["event_id"] for r in audit_rows(settings, action=AuditAction.TOOL_REFUSE)] == [events[0].event_id]
    assert {r["action"] for r in audit_rows(settings, tenant_id="acme")} == {"tool:call:refuse", "gateway:request:refuse"}


def test_bad_arguments_are_named(settings: Settings) -> None:
    """A limit without a bound, and a lake without a place."""
    for limit in (0, -1, 1_000_001):
        with pytest.raises(InvalidRequestError, match="limit"):
            usage_rows(settings, limit=limit)
    with pytest.raises(ConfigurationError, match="ftp"):
        usage_rows(Settings(lake_url="ftp://x"))
