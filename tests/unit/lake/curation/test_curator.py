"""Curation by what may happen to it: two at once, late ones, crashes, readers, what is sent again, and clocks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigurationError, IntegrityError, StorageError
from cluster.lake.curation.conservation import hourly
from cluster.lake.curation.keys import done_key, plan_key
from cluster.lake.curation.seen import Seen
from cluster.lake.curation.verify_curated import verify_curated
from cluster.lake.schema import USAGE
from cluster.lake.seal import write_parquet
from tests.lake_curation import DAY_US, MINUTE_US, CrashError, TrickyStore, curator, ids, keys, reasons
from tests.lake_raw import INGEST_US, curated, event, put, segment
from tests.lake_samples import START_US
from tests.memory_store import MemoryObjectStore


@pytest.fixture
def store() -> TrickyStore:
    return TrickyStore()


def test_events_are_sorted_for_bills_and_written_as_the_lake_says(store: TrickyStore) -> None:
    """One object a day of ids, by tenant and time; zstd, page checksums, and its own digest in its metadata."""
    put(store, segment([event(1, tenant_id="b"), event(2, tenant_id="a", event_time=START_US + 9), event(3, tenant_id="a")], 1))
    put(store, segment([event(4, start_us=START_US - DAY_US)], 2))
    report = curator(store).step()
    assert (report.planned, report.executed, report.rows) == (1, 1, {"raw": 4, "curated": 4, "settled": 4})
    first, second = keys(store, "usage/events/v1/")
    assert first == "usage/events/v1/event_date=2026-09-20/p00000001-1.parquet"
    assert second == "usage/events/v1/event_date=2026-09-21/p00000001-2.parquet"
    assert [(r["tenant_id"], r["tokens_output"]) for r in curated(store)] == [("acme", 4), ("a", 2), ("a", 3), ("b", 1)]
    file = pq.ParquetFile(pa.BufferReader(store.objects[second]))
    assert {file.metadata.row_group(0).column(i).compression for i in range(file.metadata.num_columns)} == {"ZSTD"}
    assert file.metadata.metadata[b"sovereign.plan"] == b"1"
    done = json.loads(store.objects[done_key(1)])
    assert done["objects"][1] == {
        "key": second,
        "rows": 3,
        "row_digest": file.metadata.metadata[b"sovereign.row_digest"].decode(),
        "from_us": START_US + 9,
        "to_us": START_US + 1_000,
    }


def test_a_plan_is_bounded_and_the_next_takes_the_rest(store: TrickyStore) -> None:
    """Control: Planner.max_rows. Memory holds one plan's rows; a segment larger than that goes alone."""
    put(store, *(segment([event(10 * seq + i) for i in range(seq)], seq) for seq in (1, 2, 5, 1 + 6)))
    report = curator(store, max_plan_rows=3).step()
    assert [json.loads(store.objects[k])["segments"][0]["seq"] for k in keys(store, "usage/plan/")] == [1, 5, 7]
    assert (report.planned, report.rows["curated"]) == (3, 15)
    assert curator(store).step().planned == 0


def test_threat_67_two_planners_make_one_plan_and_the_same_output(store: TrickyStore) -> None:
    """Control: the create-only plan. The second has seen another segment, and still carries out the first one's plan."""
    put(store, segment([event(1)], 1))

    def other_plans_first(key: str) -> None:
        if key == plan_key(1):
            store.before = lambda key: None
            # It sees more than the one that is just about to write.
            put(store, segment([event(2)], 2))
            curator(store).step()

    store.before = other_plans_first
    assert curator(store).step().rows == {}
    assert len(keys(store, "usage/plan/")) == 1
    assert ids(store) == [event(1).event_id, event(2).event_id]
    assert verify_curated(store) == []


def test_threat_68_one_that_slept_through_it_has_no_effect(store: TrickyStore) -> None:
    """Control: create-only keys. It stops before its first object, wakes after three more plans, and changes nothing."""
    put(store, segment([event(1)], 1))
    after: dict[str, bytes] = {}

    def sleep(key: str) -> None:
        if key.startswith("usage/events/"):
            store.before = lambda key: None
            others = curator(store, now_us=INGEST_US + 10 * MINUTE_US)
            for seq in (2, 3, 4):
                others.step()
                put(store, segment([event(seq)], seq))
            others.step()
            after.update(store.objects)

    store.before = sleep
    curator(store).step()
    assert len(after) > 10
    assert store.objects == after
    assert verify_curated(store) == []


@pytest.mark.parametrize("at", range(6))
def test_threat_69_a_successor_finishes_a_plan_that_a_crash_cut(store: TrickyStore, at: int) -> None:
    """Control: what is done is said last. Killed before any of its PUTs, the next one makes exactly what the first would have."""
    segments = [segment([event(1), event(2, cpu_us=-1), event(3, start_us=START_US - DAY_US)], 1)]
    whole = MemoryObjectStore()
    put(whole, *segments)
    curator(whole).step()
    put(store, *segments)
    puts: list[str] = []

    def crash(key: str) -> None:
        puts.append(key)
        if not key.startswith("_probe/") and sum(not k.startswith("_probe/") for k in puts) == at + 1:
            raise CrashError

    store.before = crash
    if at < 5:
        with pytest.raises(CrashError):
            curator(store).step()
    store.before = lambda key: None
    curator(store).step()
    assert {k: v for k, v in store.objects.items() if k[0] == "u"} == {k: v for k, v in whole.objects.items() if k[0] == "u"}


def test_threat_70_a_reader_sees_whole_objects_only_and_none_twice(store: TrickyStore) -> None:
    """Control: objects are created whole and never changed. Read at every PUT, every event is there at most once."""
    put(store, *(segment([event(10 * seq + i) for i in range(3)], seq) for seq in (1, 2, 3)))
    put(store, segment([event(11), event(41)], 4))
    seen: list[dict[str, str]] = []

    def read(key: str) -> None:
        found = curated(store)
        assert len({r["event_id"] for r in found}) == len(found)
        seen.append({k: hashlib.sha256(v).hexdigest() for k, v in store.objects.items() if k.startswith("usage/events/")})

    store.before = read
    curator(store, max_plan_rows=3).step()
    read("")
    assert len(seen[-1]) == 4
    for before, later in pairwise(seen):
        assert before.items() <= later.items()


def test_threat_71_an_event_sent_again_days_later_is_dropped_and_counted(store: TrickyStore) -> None:
    """Control: Seen.events, by the day of the id and without a time limit; within one plan and 40 days later."""
    put(store, segment([event(1), event(2), event(1)], 1))
    curator(store).step()
    later_us = INGEST_US + 40 * DAY_US
    put(store, segment([event(2), event(3, start_us=later_us)], 2, ingest_us=later_us))
    report = curator(store, now_us=later_us).step()
    assert report.rows == {"raw": 2, "curated": 1, "settled": 1, "duplicate": 1}
    assert ids(store) == [event(1).event_id, event(2).event_id, event(3, start_us=later_us).event_id]
    assert (hourly(store).totals()["duplicate"], reasons(store)) == (2, {})


@pytest.mark.parametrize("damage", ["torn", "edited", "foreign key"])
def test_a_segment_that_cannot_be_read_waits_and_is_told_of(store: TrickyStore, damage: str) -> None:
    """Control: read_segment. Its neighbours are curated; put right, it is too, and until then it is told of as waiting."""
    (key, whole), good = segment([event(1)], 1), segment([event(2)], 2)
    table = pq.read_table(pa.BufferReader(whole))
    edited = write_parquet(table.set_column(19, USAGE.field(19), pa.array([7])).replace_schema_metadata(table.schema.metadata))
    bad = {"torn": whole[: len(whole) // 2], "edited": edited, "foreign key": segment([event(1)], 9)[1]}
    put(store, (key, bad[damage]), good)
    report = curator(store).step()
    assert list(report.unreadable) == [key]
    assert hourly(store).waiting == [key]
    store.objects[key] = whole
    assert curator(store).step().unreadable == {}
    assert sorted(ids(store)) == [event(1).event_id, event(2).event_id]


def test_other_rows_under_a_key_are_an_alarm_and_end_all(store: TrickyStore) -> None:
    """Control: create_rows. Equal rows in other bytes are success."""
    put(store, segment([event(1), event(2)], 1))
    curator(store).step()
    (key,) = keys(store, "usage/events/")
    table = pq.read_table(pa.BufferReader(store.objects[key]))
    for rows, fails in ((table, False), (table.slice(1), True)):
        store.delete(done_key(1))
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        store.objects[key] = sink.getvalue().to_pybytes()
        if fails:
            with pytest.raises(IntegrityError, match=f"{key} holds other rows"):
                curator(store).step()
            assert done_key(1) not in store.objects
        else:
            curator(store).step()


def test_a_raw_segment_that_changed_after_it_was_planned_is_not_curated(store: TrickyStore) -> None:
    """Control: the row digest in the plan; or it is gone."""
    key, _ = segment([event(1)], 1)
    put(store, segment([event(1)], 1))
    curator(store).step()
    store.delete(done_key(1))
    store.objects[key] = segment([event(2)], 1)[1]
    with pytest.raises(IntegrityError, match="holds other rows than when plan 1 took it in"):
        curator(store).step()
    store.delete(key)
    with pytest.raises(IntegrityError, match="is in plan 1 and not in the lake"):
        curator(store).step()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("key", [plan_key(1), done_key(1), "usage/events/v1/event_date=2026-09-21/p00000001-1.parquet"])
def test_a_put_without_an_answer_costs_a_step_and_nothing_else(store: TrickyStore, key: str, stored: bool) -> None:
    """Control: Planner.catch_up. Whether it was stored or not is found out by the next step of the same curator."""
    put(store, segment([event(1)], 1))
    one = curator(store)

    def lose(at: str) -> None:
        if at == key:
            store.before = lambda at: None
            if stored:
                curator(store).step()
            raise StorageError("the answer was lost")

    store.before = lose
    with pytest.raises(StorageError):
        one.step()
    one.step()
    put(store, segment([event(2)], 2))
    assert one.step().rows["curated"] == 1
    assert len(ids(store)) == 2
    assert verify_curated(store) == []


def test_nothing_is_curated_into_a_store_that_overwrites(store: TrickyStore) -> None:
    """Control: probe_create_only."""
    put(store, segment([event(1)], 1))
    store.before = lambda key: store.delete(key) if key in store.objects else None
    with pytest.raises(ConfigurationError, match="ignores `If-None-Match"):
        curator(store).step()
    assert keys(store, "usage/plan/") == []


def test_the_memory_of_ids_is_bounded_and_changes_nothing(store: TrickyStore) -> None:
    """Control: Seen's cache. With room for one object's ids it reads the others again."""
    for seq in (1, 2, 3):
        put(store, segment([event(seq)], seq))
        curator(store).step()
    small, large = Seen(store, cache_bytes=1), Seen(store)
    wanted = pa.array([event(n).event_id for n in (1, 2, 3, 4)])
    assert small.events(4, "2026-09-21", wanted) == large.events(4, "2026-09-21", wanted)
    assert list(small.events(3, "2026-09-21", wanted)) == wanted.to_pylist()[:2]
    assert (len(small._cache), len(large._cache)) == (1, 3)


def test_figures_are_by_the_hour_of_the_event(store: TrickyStore) -> None:
    """Half-open UTC hours; what has no time that means anything is counted too."""
    hour_us = 3_600_000_000
    edge = START_US // hour_us * hour_us + hour_us
    put(
        store,
        segment(
            [event(1, event_time=edge - 1), event(2, event_time=edge), replace(event(3), event_time=-1)],
            1,
            ingest_us=edge,
        ),
    )
    curator(store, now_us=edge).step()
    assert {hour: dict(f) for hour, f in hourly(store).hours.items()} == {
        "2026-09-21T14": {"raw": 1, "curated": 1, "settled": 1},
        "2026-09-21T15": {"raw": 1, "curated": 1, "settled": 1},
        "none": {"raw": 1, "quarantined": 1},
    }
