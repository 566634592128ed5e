"""Checking what was curated: whatever is missing, edited or added is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.clock import FakeClock
from cluster.lake.curation.curator import Curator, compute
from cluster.lake.curation.keys import done_key, plan_key
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.seen import Seen
from cluster.lake.curation.verify_curated import verify_curated
from cluster.lake.seal import write_parquet
from tests.lake_raw import INGEST_US, event, put, segment
from tests.memory_store import MemoryObjectStore

EVENTS = "usage/events/v1/event_date=2026-09-21/p{:08d}-1.parquet"
HELD = "usage/quarantine/v1/p{:08d}-1.parquet"
RAW = "usage/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-{:08d}.parquet"


@pytest.fixture(scope="module")
def curated() -> MemoryObjectStore:
    """Three plans of a segment each; the second sends an event again, and has a row in quarantine."""
    store = MemoryObjectStore()
    for seq in (1, 2, 3):
        events = [event(10 * seq + i) for i in range(3)]
        if seq == 2:
            events += [event(11), event(29, cpu_us=-1)]
        put(store, segment(events, seq))
        Curator(store, clock=FakeClock(INGEST_US)).step()
    return store


@pytest.fixture
def store(curated: MemoryObjectStore) -> MemoryObjectStore:
    """One to change."""
    return curated.copy()


def problems(store: MemoryObjectStore) -> list[str]:
    return [str(f) for f in verify_curated(store)]


def edit(store: MemoryObjectStore, key: str, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(pa.BufferReader(store.objects[key]))
    store.objects[key] = write_parquet(change(table).replace_schema_metadata(table.schema.metadata))


def value(table: pa.Table, name: str, row: int, new: Any) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = new
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, type=table.schema.field(at).type))


def test_a_lake_as_it_was_curated_has_no_findings(store: MemoryObjectStore) -> None:
    """Also while segments wait, and while a plan is half carried out."""
    assert problems(MemoryObjectStore()) == problems(store) == []
    put(store, segment([event(40)], 4))
    assert problems(store) == []
    Curator(store, clock=FakeClock(INGEST_US)).step()
    store.delete(done_key(4))
    assert problems(store) == []
    store.delete(EVENTS.format(4))
    assert problems(store) == []


@pytest.mark.parametrize(
    ("change", "row", "named"),
    [
        (lambda t: value(t, "tokens_output", 2, 0), 2, "was edited: tokens_output"),
        (lambda t: value(t, "tenant_id", 0, "other"), 0, "was edited: tenant_id"),
        (lambda t: t.slice(1), None, "is missing"),
        (lambda t: pa.concat_tables([t, t.slice(1, 1)]), 3, "is there a second time"),
        (lambda t: value(t, "event_id", 1, "0" * 36), 1, "was added"),
        (lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]), None, "not in the order"),
        (lambda t: t.drop_columns(["trace_id"]), None, "does not have the columns"),
    ],
    ids=["a number", "a tenant", "a row less", "a row twice", "another row", "another order", "a column less"],
)
@pytest.mark.parametrize("number", [1, 2])
def test_an_edited_row_is_named(
    store: MemoryObjectStore, number: int, change: Callable[[pa.Table], pa.Table], row: int | None, named: str
) -> None:
    """Control: carrying the plan out again. Later plans, which look for duplicates in that object, are not blamed."""
    edit(store, EVENTS.format(number), change)
    found = verify_curated(store)
    assert {f.key for f in found} == {EVENTS.format(number)}
    assert any(f.row == row and named in f.problem for f in found), found


def test_an_edited_row_of_the_quarantine_is_named(store: MemoryObjectStore) -> None:
    """A reason that is changed, and a row taken out: as if it had never been refused."""
    edit(store, HELD.format(2), lambda t: value(t, "reason", 0, "overflow"))
    assert problems(store) == [f"{HELD.format(2)} row 0: ({RAW.format(2)} row 4) was edited: reason"]
    edit(store, HELD.format(2), lambda t: t.slice(1))
    assert problems(store) == [f"{HELD.format(2)}: its row {RAW.format(2)} row 4 is missing"]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (RAW.format(1), "is missing: plan 1 took in its 3 rows"),
        (RAW.format(3), "is missing: plan 3 took in its 3 rows"),
        (plan_key(2), "is missing, and what came after it is there"),
        (plan_key(3), "is missing, and what came after it is there"),
        (done_key(1), "is missing, and what came after it is there"),
        (EVENTS.format(1), "is missing, with its 3 rows"),
        (EVENTS.format(3), "is missing, with its 3 rows"),
        (HELD.format(2), "is missing, with its 1 rows"),
    ],
)
def test_a_missing_object_is_named(store: MemoryObjectStore, key: str, named: str) -> None:
    """Of every kind, the newest too: the plan says what there must be."""
    store.delete(key)
    assert f"{key}: {named}" in problems(store)


@pytest.mark.parametrize(
    "key",
    [
        EVENTS.format(2).replace("-1.p", "-2.p"),
        EVENTS.format(9),
        HELD.format(1),
        HELD.format(9),
        "usage/events/v1/event_date=2026-09-21/more.parquet",
        "usage/raw/v1/more.parquet",
        "usage/plan/2.json",
        "usage/done/00000002.json.old",
    ],
)
def test_an_added_object_is_named(store: MemoryObjectStore, key: str) -> None:
    """A reader of `*.parquet` would count it."""
    store.put_if_absent(key, store.objects[EVENTS.format(2)], sha256="")
    (finding,) = verify_curated(store)
    assert (finding.key, finding.problem[:9]) == (key, "was added")


@pytest.mark.parametrize("key", [plan_key(1), plan_key(3), done_key(1), done_key(3)])
@pytest.mark.parametrize(("old", "new"), [(b'"rows":3', b'"rows":4'), (b"}", b"} "), (b"{", b"[")])
def test_an_edited_document_is_named(store: MemoryObjectStore, key: str, old: bytes, new: bytes) -> None:
    """A figure, a space, and what is no document at all; of the first and the last."""
    store.objects[key] = store.objects[key].replace(old, new, 1)
    assert any(p.startswith(f"{key}: ") or f"or {key} was" in p for p in problems(store)), problems(store)


def test_a_damaged_object_is_named(store: MemoryObjectStore) -> None:
    """Half of a file, in events and in quarantine."""
    for key in (EVENTS.format(1), HELD.format(2)):
        whole = store.objects[key]
        store.objects[key] = whole[: len(whole) // 2]
        assert [p.split(" file")[0] for p in problems(store)] == [f"{key}: is not a whole Parquet"]
        store.objects[key] = whole


def test_raw_rows_that_changed_after_they_were_planned_are_named(store: MemoryObjectStore) -> None:
    """The segment is whole and says so, and is another than the plan took in; what was made of the first one is not blamed."""
    key, other = segment([event(11), event(12)], 1)
    store.objects[key] = other
    assert problems(store) == [f"{plan_key(1)}: cannot be carried out again: {key} holds other rows than when plan 1 took it in."]
    edit(store, EVENTS.format(1), lambda t: t.slice(1))
    assert f"{EVENTS.format(1)}: its rows are not those that were written: their digest differs" in problems(store)


def test_a_plan_that_was_edited_with_all_that_follows_from_it_is_named_by_the_next(store: MemoryObjectStore) -> None:
    """Control: Plan.previous_sha256. Its end says so, too; the plan behind it was made after another one."""
    plan = Plan.from_bytes(1, store.objects[plan_key(1)])
    store.objects[plan_key(1)] = replace(plan, planned_us=plan.planned_us + 1).to_bytes()
    store.objects[done_key(1)] = compute(store, 1, Seen(store)).done.to_bytes()
    assert problems(store) == [f"{plan_key(1)}: was edited: plan 2 was made after another one"]


def test_a_segment_that_is_in_two_plans_is_named(store: MemoryObjectStore) -> None:
    """Its rows would be dropped as duplicates; that it was planned twice is told all the same."""
    first, last = (Plan.from_bytes(n, store.objects[plan_key(n)]) for n in (1, 3))
    store.objects[plan_key(3)] = replace(last, segments=(*first.segments, *last.segments)).to_bytes()
    assert f"{plan_key(3)}: takes in {RAW.format(1)}, which plan 1 has" in problems(store)


def test_what_is_curated_while_it_is_checked_is_no_fault(store: MemoryObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the snapshot. Between two looks at the store other plans are made, carried out, and done."""
    lists = iter(range(6))
    plain = store.list

    def curating(prefix: str, after: str = "") -> Any:
        if (number := next(lists, None)) is not None:
            with monkeypatch.context() as quiet:
                quiet.setattr(store, "list", plain)
                for seq in (4 + 2 * number, 5 + 2 * number):
                    put(store, segment([event(10 * seq)], seq))
                    Curator(store, clock=FakeClock(INGEST_US)).step()
        return plain(prefix, after)

    monkeypatch.setattr(store, "list", curating)
    assert problems(store) == []
    assert next(lists, None) is None
