"""Facts as Parquet: exact types, the same rows for the same facts, and nothing that is no row."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import FakeClock, utc
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.lake.row_digest import row_digest
from cluster.lake.schema import AUDIT, USAGE
from cluster.lake.seal import Row, Stretch, build_table, seal
from tests.lake_samples import AGENT, START_US, admitted, final
from tests.sizes import soak

JOURNAL = JournalId(AGENT, 2)
SHIPPER = JournalId("shipper.n1", 7)


def usage_rows(count: int) -> list[Row]:
    return [Row(JOURNAL, i + 1, final(admitted(f"id-{i}"), tokens_output=i).to_body()) for i in range(count)]


def test_rows_hold_exactly_what_the_facts_hold() -> None:
    """Columns, types and values; times are UTC; writer columns say which fact it was."""
    table, refused = build_table(Stream.USAGE, usage_rows(3), START_US + 9)
    assert refused == []
    assert table.schema == USAGE
    row = table.to_pylist()[2]
    assert (row["event_id"], row["tokens_output"], row["kind"], row["billable"]) == ("id-2", 2, "final", True)
    assert (row["writer_id"], row["writer_epoch"], row["writer_seq"]) == (AGENT, 2, 3)
    assert (row["event_time"], row["ingest_time"]) == (utc(START_US + 1_000), utc(START_US + 9))
    assert row["trace_id"] is None


def test_the_columns_suit_every_reader() -> None:
    """Spark reads neither unsigned nor nanosecond nor dictionary columns; all times have the zone UTC."""
    for schema in (USAGE, AUDIT):
        for field in schema:
            assert not pa.types.is_unsigned_integer(field.type)
            assert not pa.types.is_dictionary(field.type)
            assert not pa.types.is_floating(field.type)
            assert not pa.types.is_timestamp(field.type) or (field.type.unit, field.type.tz) == ("us", "UTC")
    assert USAGE.field("schema_version").type == pa.int16()
    assert USAGE.field("tool_calls").type == pa.int32()
    assert USAGE.field("writer_epoch").type == pa.int32()


def test_the_same_facts_seal_to_the_same_bytes() -> None:
    """Threat 60: a second try after a crash is the same object. Metadata says whose it is and what it covers."""

    def sealed() -> bytes:
        table, _ = build_table(Stream.USAGE, usage_rows(500), START_US)
        stretches = [Stretch(JOURNAL, 1, 500), Stretch(JournalId("gateway.r1", 1), 3, 9)]
        return seal(Stream.USAGE, table, writer=SHIPPER, seq=4, ingest_us=START_US, stretches=stretches).data

    data = sealed()
    assert data == sealed()
    file = pq.ParquetFile(pa.BufferReader(data))
    meta = {k.decode(): v.decode() for k, v in file.metadata.metadata.items() if k.startswith(b"sovereign.")}
    assert json.loads(meta.pop("sovereign.stretches")) == [[AGENT, 2, 1, 500], ["gateway.r1", 1, 3, 9]]
    assert meta.pop("sovereign.row_digest") == row_digest(file.read())
    assert meta == {
        "sovereign.format": "1",
        "sovereign.stream": "usage",
        "sovereign.writer": "shipper.n1",
        "sovereign.epoch": "7",
        "sovereign.seq": "4",
        "sovereign.ingest_time_us": str(START_US),
        "sovereign.rows": "500",
    }
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's memory is bounded by a row group, at most 250,000 rows."""
    table = pa.table({"n": pa.array(range(600_000), pa.int32())})
    from cluster.lake.seal import write_parquet

    file = pq.ParquetFile(pa.BufferReader(write_parquet(table)))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [250_000, 250_000, 100_000]


def test_a_damaged_page_is_found() -> None:
    """Control: page checksums."""
    table, _ = build_table(Stream.USAGE, usage_rows(2_000), START_US)
    data = bytearray(seal(Stream.USAGE, table, writer=SHIPPER, seq=1, ingest_us=START_US, stretches=[]).data)
    data[len(data) // 3] ^= 1
    with pytest.raises(OSError, match=r"CRC|checksum|corrupt|Corrupt"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens_output", 1.5),
        ("tokens_output", True),
        ("tokens_output", -1),
        ("tokens_output", None),
        ("tokens_output", 1 << 63),
        ("tool_calls", 1 << 40),
        ("event_id", b"bytes"),
        ("event_id", None),
        ("billable", 1),
        ("kind", "guess"),
        ("event_time", 1.0),
    ],
)
def test_a_fact_that_is_no_row_is_refused_alone(field: str, value: object) -> None:
    """Threat 75. Control: seal._check. Nothing is cut, cast or zeroed, and its neighbours are rows all the same."""
    rows = usage_rows(3)
    rows[1] = Row(JOURNAL, 2, rows[1].body | {field: value})
    table, refused = build_table(Stream.USAGE, rows, START_US)
    assert table.column("event_id").to_pylist() == ["id-0", "id-2"]
    assert [r.row for r in refused] == [rows[1]]
    assert field in refused[0].reason


def test_facts_of_another_release_are_rows() -> None:
    """Threat 77. A field more is passed over; a field less takes its default."""
    older, newer = final(admitted("old")).to_body(), final(admitted("new")).to_body() | {"gpu_us": 7}
    del older["queue_us"]
    table, refused = build_table(Stream.USAGE, [Row(JOURNAL, 1, older), Row(JOURNAL, 2, newer)], START_US)
    assert refused == []
    assert table.schema == USAGE
    assert table.column("queue_us").to_pylist() == [0, 0]


def test_audit_facts_are_rows() -> None:
    """With their detail as JSON text."""
    event = AuditEvent.new(FakeClock(), AuditAction.TOOL_REFUSE, "denied", actor="planner-001", detail={"tool": "shell"})
    table, refused = build_table(Stream.AUDIT, [Row(JOURNAL, 1, event.to_body()), Row(JOURNAL, 2, {"event_id": "x"})], START_US)
    assert table.schema == AUDIT
    assert json.loads(table.column("detail_json")[0].as_py()) == {"tool": "shell"}
    assert [r.row.seq for r in refused] == [2]


def plain_digest(table: pa.Table) -> str:
    """The digest by its definition, value by value."""
    h = hashlib.sha256(b"sovereign-rows-1" + struct.pack("<Q", table.num_rows))
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        values: list[Any] = table.column(name).to_pylist()
        h.update(f"{name}\0{kind}\0".encode() + bytes(v is not None for v in values))
        if kind == pa.string():
            texts = [(v or "").encode() for v in values]
            h.update(b"".join(struct.pack("<i", len(t)) for t in texts) + b"".join(texts))
        else:
            letter = {"bool": "B", "int16": "h", "int32": "i", "int64": "q"}[str(kind)]
            h.update(b"".join(struct.pack(f"<{letter}", v or 0) for v in values))
    return h.hexdigest()


ROWS = st.lists(
    st.tuples(
        st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        st.none() | st.booleans(),
        st.integers(-9, 9),
    ),
    max_size=12,
)


@settings(max_examples=soak(40, 2_000), deadline=None)
@given(ROWS, st.integers(0, 12), st.integers(0, 12))
def test_the_row_digest_is_as_defined_however_rows_are_stored(rows: list[tuple[Any, ...]], cut: int, begin: int) -> None:
    """Chunks, slices, empty tables, absent values and Parquet in between do not change it; the definition is all there is."""
    schema = pa.schema([("t", pa.string()), ("n", pa.int64()), ("b", pa.bool_()), ("h", pa.int16())])
    table = pa.Table.from_pylist([dict(zip(schema.names, r, strict=True)) for r in rows], schema=schema)
    assert row_digest(table) == plain_digest(table)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert row_digest(chunked) == plain_digest(table)
    assert row_digest(table.slice(begin)) == plain_digest(table.slice(begin))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=3)
    assert row_digest(pq.read_table(pa.BufferReader(sink.getvalue()))) == plain_digest(table)


def test_an_absent_value_is_not_an_empty_one() -> None:
    """Nor do values move between columns or rows without the digest changing."""
    digests = [
        row_digest(pa.table({"a": pa.array(a, pa.string()), "b": pa.array(b, pa.string())}))
        for a, b in ((["x", ""], ["", ""]), (["x", None], ["", ""]), (["", "x"], ["", ""]), (["", ""], ["x", ""]), (["x"], [""]))
    ]
    assert len(set(digests)) == len(digests)
