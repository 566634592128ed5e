"""What an earlier release planned and curated is read, continued and checked by this one."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from cluster.clock import FakeClock
from cluster.errors import IntegrityError
from cluster.journal.fact import Stream
from cluster.lake.curation.conservation import hourly
from cluster.lake.curation.curator import Curator
from cluster.lake.curation.done import Done
from cluster.lake.curation.keys import done_key, events_key, events_prefix, plan_key, plan_of, refused_key
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.ranges import Ranges
from cluster.lake.curation.verify_curated import verify_curated
from cluster.lake.layout import segment_key
from cluster.lake.schema import SCHEMAS, USAGE
from cluster.lake.seal import seal
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_raw import INGEST_US, SHIPPER, curated, event, put, segment, table_of

GOLDEN = Path(__file__).parent.parent / "golden" / "curated-1"


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    """A lake of two plans as the first release wrote it."""
    shutil.copytree(GOLDEN, tmp_path / "lake")
    return LocalObjectStore(tmp_path / "lake")


def appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a later release, whose usage rows have a column more."""
    monkeypatch.setitem(SCHEMAS, Stream.USAGE, USAGE.append(pa.field("gpu_us", pa.int64())))


def test_the_first_releases_plans_make_the_same_rows_today(store: LocalObjectStore) -> None:
    """Carried out again, its raw rows are the events, quarantine, figures and documents that it wrote, byte for byte."""
    assert verify_curated(store) == []
    total = hourly(store).totals()
    assert total == {
        "raw": 9,
        "curated": 4,
        "settled": 4,
        "quarantined": 3,
        "duplicate": 1,
        "superseded": 1,
    }
    assert {r["reason"] for r in curated(store, "usage/quarantine/")} == {"negative", "conflict", "unknown_tenant"}


def test_a_plan_that_the_first_release_made_is_carried_out_by_a_later_one(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: Plan.columns. It was killed before it wrote anything of plan 2; the new column is in the next plan's rows."""
    written = {o.key: store.get(o.key) for o in store.list("usage/") if plan_of(o.key) == 2}
    for key in written:
        if key != plan_key(2):
            (store.root / key).unlink()
    appended(monkeypatch)
    put(store, segment([event(7)], 3))
    Curator(store, clock=FakeClock(INGEST_US)).step()
    assert {key: store.get(key) for key in written} == written
    assert "gpu_us" in curated(store)[-1]
    assert verify_curated(store) == []


def test_a_later_releases_segment_waits_for_it(store: LocalObjectStore) -> None:
    """Control: as_columns. Cutting a column that we don't know off would lose it."""
    table = table_of([event(7)]).append_column("gpu_us", pa.array([5]))
    later = seal(Stream.USAGE, table, writer=SHIPPER, seq=3, ingest_us=INGEST_US, stretches=[])
    key = segment_key(Stream.USAGE, INGEST_US, SHIPPER.writer_id, SHIPPER.epoch, 3)
    put(store, (key, later.data))
    assert "33 columns, more than the 32" in Curator(store, clock=FakeClock(INGEST_US)).step().unreadable[key]


def test_duckdb_polars_and_pyarrow_read_the_same_events(store: LocalObjectStore) -> None:
    """What the first release wrote and what this one writes, with the day as a column: times, texts and sums."""
    put(store, segment([event(7, model="other")], 3))
    Curator(store, clock=FakeClock(INGEST_US)).step()
    files = f"{store.root}/usage/events/v1/**/*.parquet"
    sql = f"""select event_date::varchar, model, event_id, epoch_us(event_time), tokens_output, trace_id
              from read_parquet('{files}', hive_partitioning = true) order by event_id"""  # noqa: S608  # our own folder
    with duckdb.connect(":memory:") as con:
        by_duckdb = con.sql(sql).fetchall()
    frame = pl.scan_parquet(files, hive_partitioning=True).sort("event_id").collect()
    epoch = frame["event_time"].dt.epoch("us")
    names = ["event_date", "model", "event_id", "event_time", "tokens_output", "trace_id"]
    texts = frame.with_columns(pl.col("event_date").cast(pl.String), epoch.alias("event_time")).select(names)
    by_pyarrow = ds.dataset(f"{store.root}/usage/events/v1", partitioning="hive").to_table().sort_by("event_id").to_pylist()
    assert by_duckdb == texts.rows()
    assert [r[2] for r in by_duckdb] == [r["event_id"] for r in by_pyarrow]
    assert [r[4:] for r in by_duckdb] == [(r["tokens_output"], r["trace_id"]) for r in by_pyarrow]
    assert {r[0] for r in by_duckdb} == {"2026-09-20", "2026-09-21"}


@pytest.mark.parametrize("kind", [Plan, Done])
def test_a_document_is_read_as_it_was_written_or_not_at_all(kind: type[Plan] | type[Done]) -> None:
    """Another number, a later format, a figure that is none, a field more, a space: each is refused."""
    data = (GOLDEN / (plan_key(1) if kind is Plan else done_key(1))).read_bytes()
    assert kind.from_bytes(1, data).to_bytes() == data
    with pytest.raises(IntegrityError, match="later release"):
        kind.from_bytes(1, data.replace(b'"format":1', b'"format":2'))
    for other in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        data + b" ",
        data.replace(b"{", b'{"a":1,', 1),
        data.replace(b'"number":1', b'"number":2'),
    ):
        with pytest.raises(IntegrityError):
            kind.from_bytes(1, other)


def test_keys_are_what_the_layout_says_and_read_back() -> None:
    """Numbers have eight digits; what is no key of ours belongs to no plan."""
    assert plan_key(7) == "usage/plan/00000007.json"
    assert done_key(7) == "usage/done/00000007.json"
    assert events_key(7, 2, "2026-01-31") == f"{events_prefix('2026-01-31')}p00000007-2.parquet"
    assert events_prefix("2026-01-31") == "usage/events/v1/event_date=2026-01-31/"
    assert refused_key(7) == "usage/quarantine/v1/p00000007-1.parquet"
    assert {plan_of(k) for k in (plan_key(7), done_key(7), events_key(7, 2, "2026-01-31"), refused_key(7))} == {7}
    assert plan_of("usage/plan/7.json") is plan_of("usage/events/v1/p00000007-1.parquet") is None


def test_ranges_hold_what_was_added() -> None:
    """In any order; numbers in a row are one range."""
    ranges = Ranges()
    for number in (5, 1, 3, 2, 9, 4, 4, 8):
        ranges.add(number)
    assert [n for n in range(12) if n in ranges] == [1, 2, 3, 4, 5, 8, 9]
    assert len(ranges) == 2
