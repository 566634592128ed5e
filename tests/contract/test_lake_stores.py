"""The road from journal to query, over a folder and over a real S3 store."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.clock import SystemClock
from cluster.journal.fact import Stream
from cluster.journal.usage_event import lost_event_id
from cluster.journal.writer import JournalWriter
from cluster.lake.curation.conservation import hourly
from cluster.lake.curation.keys import EVENTS_PREFIX
from cluster.lake.curation.rows_file import read_rows
from cluster.lake.curation.verify_curated import verify_curated
from cluster.lake.query import audit_rows, usage_rows
from cluster.lake.ship import Shipper
from cluster.lake.verify import verify_raw
from cluster.settings import Settings
from cluster.wiring import build_curator, check_object_store, open_object_store
from tests.lake_samples import AGENT, admitted, call_fact, final, make_calls, usage_fact
from tests.servers.seaweedfs import S3Server, s3_credentials, seaweedfs

__all__ = ["s3_credentials", "seaweedfs"]


@pytest.fixture(params=["local", "seaweedfs"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "local":
        return Settings(home=tmp_path)
    server: S3Server = request.getfixturevalue("seaweedfs")
    return Settings(home=tmp_path, lake_url=f"s3://{server.bucket}/{uuid.uuid4().hex}", s3_endpoint=server.endpoint)


@pytest.mark.usefixtures("s3_credentials")
def test_what_was_written_is_what_is_read(settings: Settings) -> None:
    """Usage, losses and audit facts, with a second shipper that takes over; the store keeps what verify expects."""
    check_object_store(settings)
    assert usage_rows(settings) == []
    store = open_object_store(settings)
    agent = JournalWriter(settings.journal_dir, AGENT, 1)
    ids = make_calls(agent, 3)
    with Shipper.open(settings.journal_dir, store, "n1", clock=SystemClock()) as shipper:
        assert shipper.step().usage_rows == 3
    ids += make_calls(agent, 2)
    open_call = admitted()
    agent.append(call_fact(open_call))
    agent.close()
    with Shipper.open(settings.journal_dir, store, "n2", clock=SystemClock()) as shipper:
        report = shipper.step()
        assert (report.usage_rows, report.lost_events, report.store_error) == (3, 1, "")
    rows = usage_rows(settings)
    assert sorted(r["event_id"] for r in rows) == sorted([*ids, lost_event_id(open_call.event_id)])
    assert {r["object_id"] for r in audit_rows(settings, action="journal:writer:end")} == {f"{AGENT}/e1", "shipper.n1/e1"}
    assert verify_raw(store, Stream.USAGE) == verify_raw(store, Stream.AUDIT) == []


@pytest.mark.usefixtures("s3_credentials")
def test_usage_is_curated_once_by_two_at_a_time(settings: Settings) -> None:
    """Two curators in each other's way, twice; every event is there once, and every row, plan and object checks out."""
    store = open_object_store(settings)
    ids: list[str] = []
    with (
        JournalWriter(settings.journal_dir, AGENT, 1) as agent,
        Shipper.open(settings.journal_dir, store, "n1", clock=SystemClock()) as shipper,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(2):
            calls = [admitted(start_time=SystemClock().now_us()) for _ in range(3)]
            agent.append_many([fact for call in calls for fact in (call_fact(call), usage_fact(final(call)))])
            ids += [call.event_id for call in calls]
            shipper.step()
            for report in pool.map(lambda _: build_curator(settings).step(), range(2)):
                assert report.unreadable == {}
    rows = [r for o in store.list(EVENTS_PREFIX) for r in read_rows(o.key, store.get(o.key)).to_pylist()]
    assert sorted(r["event_id"] for r in rows) == sorted(ids)
    assert verify_curated(store) == []
    figures = hourly(store)
    assert (figures.totals()["raw"], figures.waiting, figures.unbalanced()) == (6, [], [])
