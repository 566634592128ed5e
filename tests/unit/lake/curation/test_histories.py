"""Model check of curation: whatever is killed, interleaved, lost and sent again, no total is wrong."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from functools import cache
from typing import Any

import pyarrow as pa
import pytest

from cluster.clock import FakeClock
from cluster.errors import IntegrityError
from cluster.journal.usage_event import UsageEvent, UsageKind, lost_event, lost_event_id
from cluster.lake.curation import create_once, curator, outcome, planner, rows_file
from cluster.lake.curation.conservation import hourly
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.raw_segment import read_segment
from cluster.lake.curation.seen import Seen
from tests.lake_histories import OverwritingStore, PrivateStore, View, run_history
from tests.lake_raw import INGEST_US, event, segment, uuid7_at
from tests.lake_samples import START_US, admitted
from tests.memory_store import MemoryObjectStore
from tests.sizes import soak

HISTORIES = soak(500, 20_000)
DAY_US = 86_400_000_000


class Story:
    """What agents emitted, in segments: new events, the same again, others under an old id, losses, and what can't be billed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"story {seed}")
        said: list[UsageEvent] = []
        self.bad = 0
        self.segments: list[tuple[str, bytes]] = []
        for seq in range(1, 4):
            events = []
            for _ in range(rng.randrange(1, 6)):
                kind = rng.choices(["new", "again", "other", "lost", "bad"], [6, 3, 1, 2, 1])[0]
                number = len(said)
                one = event(number + 1, start_us=START_US + rng.randrange(2) * DAY_US)
                if kind in {"again", "other"} and said:
                    one = rng.choice(said)
                    if kind == "other" and one.kind is UsageKind.FINAL:
                        one = event(number + 1, event_id=one.event_id, reservation_id=one.reservation_id)
                elif kind == "lost":
                    call = admitted(uuid7_at(START_US, number + 1), start_time=START_US)
                    one = lost_event(call)
                    if rng.random() < 0.6:
                        said.append(event(number + 1))
                elif kind == "bad":
                    one.cpu_us = -1
                    self.bad += 1
                    events.append(one)
                    continue
                said.append(one)
                events.append(one)
            # What follows a loss in `said` and in no segment yet comes as a late final event.
            self.segments.append(segment(events, seq, ingest_us=INGEST_US + DAY_US))
        self.rows = [row for table in map(_rows, self.segments) for row in table]


def _rows(one: tuple[str, bytes]) -> list[dict[str, Any]]:
    return read_segment(*one)[1].to_pylist()


@cache
def story(seed: int) -> Story:
    return Story(seed)


@pytest.fixture(autouse=True)
def _no_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as Arrow's own stream and a plain digest, ten times as fast; each of the few raw segments is parsed once."""
    parquet, segment = cache(rows_file.read_rows), cache(read_segment)

    def write_rows(table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes()

    def read_rows(key: str, data: bytes, columns: list[str] | None = None) -> pa.Table:
        if data.startswith(b"PAR1"):
            return parquet(key, data)
        table = pa.ipc.open_stream(data).read_all()
        return table.select(columns) if columns else table

    monkeypatch.setattr(rows_file, "write_rows", write_rows)

    def row_digest(table: pa.Table) -> str:
        return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()

    monkeypatch.setattr(outcome, "row_digest", row_digest)
    monkeypatch.setattr(create_once, "row_digest", row_digest)
    monkeypatch.setattr(rows_file, "read_rows", read_rows)
    monkeypatch.setattr(curator, "outcome", remembered)
    monkeypatch.setattr(planner, "read_segment", segment)
    monkeypatch.setattr(curator, "read_segment", segment)


@cache
def memory() -> dict[object, outcome.Outcome]:
    return {}


def remembered(plan: Plan, segments: list[pa.Table], earlier: Seen) -> outcome.Outcome:
    """A plan's outcome, computed once: it is a function of the plan, which pins its rows, and of the events that are there."""
    store: Any = earlier._store
    objects = getattr(store, "_store", store).objects
    there = tuple((key, objects[key]) for key in sorted(objects) if key.startswith("usage/events/"))
    if len(memory()) > 2_000:
        memory().clear()
    if (plan, there) not in memory():
        memory()[plan, there] = outcome.outcome(plan, segments, earlier)
    return memory()[plan, there]


def run(seed: int, view: type[View] = View) -> None:
    """Run one history and check every figure of it; raises AssertionError or IntegrityError."""
    told, store = story(seed % soak(12, 400)), MemoryObjectStore()
    arrivals = list(told.segments)
    random.Random(seed).shuffle(arrivals)
    # Half of a file stands under one key for a while: nothing of it may count then, and all of it later.
    torn = arrivals[0][0] if seed % 4 == 0 else ""
    run_history(store, arrivals, clock=FakeClock(INGEST_US + DAY_US), seed=seed, view=view, torn=torn)
    check(told, store)


def rows_of(store: MemoryObjectStore, prefix: str) -> list[dict[str, Any]]:
    return [row for o in store.list(prefix) for row in rows_file.read_rows(o.key, store.get(o.key)).to_pylist()]


def check(told: Story, store: MemoryObjectStore) -> None:
    rows = rows_of(store, "usage/events/v1/")
    held = rows_of(store, "usage/quarantine/v1/")
    found = Counter(r["event_id"] for r in rows)
    assert set(found.values()) <= {1}, "an event stands twice in what analysts read"
    sound = [r for r in told.rows if r["cpu_us"] >= 0]
    finals = {r["event_id"] for r in sound if r["kind"] == "final"}
    superseded = {lost_event_id(i) for i in finals}
    ids = {r["event_id"] for r in sound}
    assert ids - superseded <= set(found) <= ids, "an event is missing, or nobody emitted it"
    tokens: dict[str, set[int]] = {}
    for r in sound:
        tokens.setdefault(r["event_id"], set()).add(r["tokens_output"])
    assert all(r["tokens_output"] in tokens[r["event_id"]] for r in rows)
    settled = {i: t for i, t in tokens.items() if len(t) == 1}
    assert sum(r["tokens_output"] for r in rows if r["event_id"] in settled) == sum(sum(t) for t in settled.values())
    assert sum(r["reason"] == "negative" for r in held) == told.bad
    figures = hourly(store)
    assert figures.waiting == []
    total = figures.totals()
    assert total["raw"] == len(told.rows)
    assert (total["curated"], total["quarantined"]) == (len(rows), len(held))
    assert total["raw"] == total["curated"] + total["quarantined"] + total["duplicate"] + total["superseded"]
    losses = {r["event_id"] for r in sound if r["kind"] == "lost"}
    assert total["lost"] - total["revived"] == len(losses - superseded), "a call counts as lost that was not, or the other way"


def run_all(view: type[View] = View) -> None:
    for seed in range(HISTORIES):
        try:
            run(seed, view)
        except BaseException as e:
            e.add_note(f"history {seed}")
            raise


def test_no_history_ends_with_a_wrong_total() -> None:
    """Crashes and lies at every PUT, two planners in each other's way, zombies, torn files, events sent again."""
    run_all()


@pytest.mark.parametrize("broken", [PrivateStore, OverwritingStore])
def test_the_check_finds_the_fault_when_a_control_is_taken_out(broken: type[View]) -> None:
    """Without plans that all agree on, or without create-only keys, some history ends wrong: so the check is one."""
    with pytest.raises((AssertionError, IntegrityError)):
        run_all(broken)
