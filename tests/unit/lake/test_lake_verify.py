"""Checking the raw segments: deleting or editing any of them is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.clock import FakeClock
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.writer import JournalWriter
from cluster.lake.layout import parse_segment_key, quarantine_key, segment_key
from cluster.lake.seal import write_parquet
from cluster.lake.ship import Shipper
from cluster.lake.verify import verify_raw
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_samples import AGENT, START_US, make_calls

Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    """A lake of four usage segments of two journals."""
    store = LocalObjectStore(tmp_path / "lake")
    journals, clock = tmp_path / "journal", FakeClock()
    with (
        JournalWriter(journals, AGENT, 1, clock=clock) as one,
        JournalWriter(journals, "agent.acme.two", 1, clock=clock) as two,
        Shipper.open(journals, store, "n1", clock=clock) as shipper,
    ):
        for _ in range(4):
            make_calls(one, 5)
            make_calls(two, 3)
            shipper.step()
    return store


def paths(store: LocalObjectStore) -> list[Path]:
    return [store.root / o.key for o in store.list("usage/raw/")]


def problems(store: LocalObjectStore) -> list[str]:
    return [str(f) for f in verify_raw(store, Stream.USAGE)]


def edit(path: Path, change: Edit) -> None:
    table = pq.read_table(path)
    path.write_bytes(write_parquet(change(table).replace_schema_metadata(table.schema.metadata)))


def test_a_lake_as_it_was_sealed_has_no_findings(store: LocalObjectStore) -> None:
    """Usage and audit, and an empty lake."""
    assert len(paths(store)) == 4
    assert problems(store) == []
    assert verify_raw(store, Stream.AUDIT) == []


def column(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = value
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, type=table.schema.field(at).type))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: column(t, "tokens_output", 2, 0), "digest differs"),
        (lambda t: column(t, "trace_id", 0, ""), "digest differs"),
        (lambda t: t.slice(1), "has 7 rows, and 8 were sealed"),
        (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "row 8: is fact 8 of agent.acme.planner-001/e1 a second time"),
        (lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]), "digest differs"),
        (
            lambda t: column(t, "writer_seq", 4, 99),
            "row 4: is fact 99 of agent.acme.planner-001/e1, which the segment does not cover",
        ),
        (lambda t: column(t, "event_id", 3, t.column("event_id")[0].as_py()), "row 3: has the event_id"),
    ],
    ids=["a number", "an absent value", "a row less", "a row twice", "another order", "a foreign fact", "an id twice"],
)
def test_an_edited_row_is_named(store: LocalObjectStore, change: Edit, named: str) -> None:
    """Control: row_digest in the segment's metadata, and what its stretches cover."""
    path = paths(store)[0]
    edit(path, change)
    found = problems(store)
    assert any(named in p for p in found), found
    assert all(p.startswith(str(path.relative_to(store.root))) for p in found)


def test_a_damaged_file_is_named(store: LocalObjectStore) -> None:
    """Not whole, or none of ours."""
    first, second, *_ = paths(store)
    first.write_bytes(first.read_bytes()[:-100])
    pq.write_table(pa.table({"n": [1]}), second)
    found = problems(store)
    assert "is not a whole Parquet file" in found[0]
    assert "its metadata is not that of its key: no stream" in found[1]


def test_a_missing_segment_is_named_by_the_next(store: LocalObjectStore) -> None:
    """Control: stretches lie end to end. Without the last one nothing can be seen here; that is what checkpoints are for."""
    for gone in paths(store)[:-1]:
        data = gone.read_bytes()
        gone.unlink()
        found = problems(store)
        assert [p.split(": ")[1].split(" facts ")[0] for p in found] == ["no segment covers"] * 2
        gone.write_bytes(data)
    paths(store)[-1].unlink()
    assert problems(store) == []


def test_a_segment_under_another_key_is_named(store: LocalObjectStore) -> None:
    """A copy counts its rows twice; a moved one is not where it was sealed."""
    first = paths(store)[0]
    first.with_name("e1-00000009.parquet").write_bytes(first.read_bytes())
    assert "it was sealed as segment 1 of shipper.n1/e1" in problems(store)[0]


def test_rows_that_were_shipped_twice_are_named(store: LocalObjectStore, tmp_path: Path) -> None:
    """The same stretches in two segments, each whole by itself, as a shipper without its memory would make them."""
    clock = FakeClock()
    (tmp_path / "journal" / "shipper.n1").rename(tmp_path / "forgotten")
    with Shipper.open(tmp_path / "journal", store, "n2", clock=clock) as shipper:
        shipper.step()
    found = problems(store)
    assert sum("are in another segment too" in p for p in found) >= 2
    assert sum("has the event_id" in p for p in found) == 32


def test_keys_read_back_as_they_were_made() -> None:
    """And a key that is none is none."""
    key = segment_key(Stream.AUDIT, START_US, "shipper.n1", 3, 12)
    assert key == "audit/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e3-00000012.parquet"
    assert parse_segment_key(key) == (Stream.AUDIT, "shipper.n1", 3, 12)
    assert parse_segment_key("usage/raw/v1/x.parquet") is None
    quarantined = quarantine_key(key, "ab" * 32)
    assert quarantined == "audit/quarantine/v1/ingest_date=2026-09-21/writer=shipper.n1/e3-00000012-abababababababab.parquet"
    assert JournalId.parse("shipper.n1/e3") == JournalId("shipper.n1", 3)
