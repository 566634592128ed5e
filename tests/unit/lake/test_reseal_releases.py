"""A batch that an earlier release sealed and did not store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.journal.audit_event import AuditAction
from cluster.journal.fact import Fact, Stream
from cluster.lake import seal
from cluster.lake.schema import FIRST_COLUMNS, SCHEMAS, USAGE
from tests.lake_batch import (
    FIRST_KEYS,
    A,
    B,
    refusals,
    sealed_not_stored,
    usage_of,
)
from tests.lake_node import Node
from tests.lake_samples import final

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a later release, whose usage rows have a column more, which may be empty."""
    monkeypatch.setitem(SCHEMAS, Stream.USAGE, USAGE.append(pa.field("gpu_us", pa.int64())))
    monkeypatch.setitem(seal._OPTIONAL, Stream.USAGE, seal._OPTIONAL[Stream.USAGE] | {"gpu_us"})


def test_a_later_release_with_a_column_more_seals_what_was_planned(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: Intent.columns. The old batch has the old columns under its key, the next one has the new ones."""
    sealed_not_stored(node)
    appended(monkeypatch)
    with node.agent(writer_id="agent.b.y") as agent, node.shipper() as shipper:
        agent.append(Fact(Stream.USAGE, final().to_body() | {"gpu_us": 7}))
        report = shipper.step()
        assert (report.conflicts, report.broken_journals, report.refused_facts, report.usage_rows) == (0, 0, 0, 5)
    first, second = (pq.read_table(pa.BufferReader(node.store.get(o.key))) for o in node.store.list("usage/raw/"))
    assert first.column_names == USAGE.names
    assert second.column("gpu_us").to_pylist() == [7]
    assert refusals(node) == {"a": 5, "b": 5}
    node.check()


def test_a_batch_that_the_first_release_planned_is_stored_as_planned(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: FIRST_COLUMNS. Its state, as it wrote it, names no columns; the digests are those that it computed."""
    assert {Stream.USAGE: 32, Stream.AUDIT: 16} == FIRST_COLUMNS
    shutil.copytree(GOLDEN / "release-1", node.journals)
    appended(monkeypatch)
    with node.shipper() as shipper:
        report = shipper.step()
    assert (report.conflicts, report.broken_journals, report.refused_facts) == (0, 0, 0)
    found = {}
    for key in FIRST_KEYS:
        metadata = pq.read_schema(pa.BufferReader(node.store.get(key))).metadata
        found[key] = metadata[b"sovereign.row_digest"].decode()
    assert found == {
        FIRST_KEYS[0]: "4ec08ddcaa305281c3d2382c38cf1b24624463d3d07773b25795c92cba5036a6",
        FIRST_KEYS[1]: "3119d5fc3e33320b1c0b2a192693fd8e8b7aaac930654c0a5dc45a350e0c6c6f",
    }
    node.check()


@pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored before"])
def test_a_release_that_makes_other_rows_ships_them_once_and_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Control: reseal. Such as an older release, put back, that knows fewer columns. No journal is broken."""
    sealed_not_stored(node)
    if stored:
        node.store.lose_answers = True
        with node.shipper() as shipper:
            shipper.step()
        node.store.lose_answers = False
    monkeypatch.setitem(SCHEMAS, Stream.USAGE, pa.schema([f for f in USAGE if f.name != "queue_us"]))
    with node.shipper() as shipper:
        report = shipper.step()
        assert (report.conflicts, report.broken_journals) == (2, 0)
    assert usage_of(node) == {A.writer_id: 2, B.writer_id: 2}
    assert refusals(node) == {"a": 5, "b": 5}
    assert {r["object_id"] for r in node.audits(AuditAction.SEGMENT_CONFLICT)} == set(FIRST_KEYS)
    assert list(node.store.list("usage/quarantine/")) == []
    node.check()
