"""What it costs to have every usage event once in the lake, against pyarrow alone writing the same rows.

The last line is one JSON object: {"ingest_events_per_s", "curate_rows_per_s", "raw_writer_rows_per_s", "curate_ratio",
"bytes_per_row", "day_of_30_read_s"}. *Ingest*: facts as they come from a journal, to a sealed segment in the store. *Curate*:
planned, read, checked, deduplicated against all before, sorted, written. *Raw writer*: `pyarrow.parquet.write_table` of the rows
that were curated, from memory to the same disk. `bytes_per_row` is of `events/`. *Day of 30*: DuckDB's sums by tenant and model
of one day of the 30 that are there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.journal import RAW, START_US
from cluster.clock import FakeClock
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.usage_event import Outcome, UsageEvent, UsageKind
from cluster.lake.curation.curator import Curator
from cluster.lake.curation.keys import events_prefix, plan_of
from cluster.lake.layout import segment_key
from cluster.lake.seal import ROW_GROUP_ROWS, ZSTD_LEVEL, Row, Stretch, build_table, seal
from cluster.storage.local_object_store import LocalObjectStore

DAYS = 30
DAY_US = 86_400_000_000
SHIPPER = JournalId("shipper.n1", 1)
AGENT = JournalId("agent.acme.strategic-planner-001", 1)


def uuid7_at(us: int, rng: random.Random) -> str:
    """An id as it would have been minted then."""
    return str(uuid.UUID(int=us // 1_000 << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)))


def rows_of_a_day(day: int, count: int, rng: random.Random) -> list[Row]:
    """Facts of a day, as the shipper reads them; ids and texts as they are in production, no two alike."""
    rows = []
    for i in range(count):
        start = START_US // DAY_US * DAY_US + day * DAY_US + i * (DAY_US - 10_000_000) // count
        latency, uncached, output = rng.randrange(2_000, 4_000_000), rng.randrange(50, 8_000), rng.randrange(5, 900)
        event_id = uuid7_at(start, rng)
        event = UsageEvent(
            event_id=event_id,
            kind=UsageKind.FINAL,
            event_time=start + latency,
            start_time=start,
            tenant_id=f"tenant-{rng.randrange(200):03d}",
            project_id="market-research",
            agent_id=f"strategic-planner-{rng.randrange(20):03d}",
            agent_version="3",
            invocation_id=event_id,
            reservation_id=event_id,
            model=rng.choice(["openai:gpt-5-mini", "openai:gpt-5", "local:smollm2"]),
            outcome=Outcome.OK,
            billable=True,
            tokens_input_uncached=uncached,
            tokens_output=output,
            tool_calls=2,
            cpu_us=latency // 9,
            reserved_cpu_milli_ms=latency,
            mem_mib_ms=latency * 2,
            latency_us=latency,
            queue_us=latency // 70,
            provider_usage_raw=RAW % (uncached, output, 0, uncached + output),
        )
        rows.append(Row(AGENT, day * count + i + 1, event.to_body()))
    return rows


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ingest(store: LocalObjectStore, day: int, rows: list[Row]) -> None:
    """Seal a day's facts and store the segment, as the shipper does."""
    ingest_us = START_US // DAY_US * DAY_US + (day + 1) * DAY_US
    table, refused = build_table(Stream.USAGE, rows, ingest_us)
    assert not refused
    stretches = [Stretch(AGENT, rows[0].seq, rows[-1].seq)]
    one = seal(Stream.USAGE, table, writer=SHIPPER, seq=day + 1, ingest_us=ingest_us, stretches=stretches)
    key = segment_key(Stream.USAGE, ingest_us, SHIPPER.writer_id, SHIPPER.epoch, day + 1)
    store.put_if_absent(key, one.data, sha256=one.sha256)


def write_plain(store: LocalObjectStore, number: int, folder: Path) -> Callable[[], None]:
    """Return the same rows' writing without us: the tables are in memory, sorted and checked."""
    keys = [o.key for o in store.list("usage/events/") if plan_of(o.key) == number]
    tables = [pq.read_table(pa.BufferReader(store.get(key))) for key in keys]
    options = {"row_group_size": ROW_GROUP_ROWS, "compression": "zstd", "compression_level": ZSTD_LEVEL}

    def work() -> None:
        for at, table in enumerate(tables):
            pq.write_table(table, folder / f"{number}-{at}.parquet", write_page_checksum=True, **options)

    return work


def read_day(store: LocalObjectStore, day: int) -> Callable[[], None]:
    """Return an analyst's question about one day."""
    prefix = events_prefix(f"{time.strftime('%Y-%m-%d', time.gmtime(START_US // 1_000_000 + day * 86_400))}")
    sql = f"""select tenant_id, model, count(*), sum(tokens_input_uncached), sum(tokens_output), sum(cpu_us)
              from read_parquet('{store.root}/{prefix}*.parquet') group by all"""  # noqa: S608  # our own names

    def work() -> None:
        with duckdb.connect(":memory:") as con:
            assert con.sql(sql).fetchall()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-a-day", type=int, default=50_000, help="rows of each of the 30 days [50000]")
    count: int = parser.parse_args().rows_a_day
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        store, plain = LocalObjectStore(Path(folder) / "lake"), Path(folder) / "plain"
        plain.mkdir()
        curator = Curator(store, clock=FakeClock(START_US + (DAYS + 1) * DAY_US))
        speeds: list[tuple[float, float, float]] = []
        for day in range(DAYS):
            rows = rows_of_a_day(day, count, rng)
            ingested = seconds(lambda day=day, rows=rows: ingest(store, day, rows))  # type: ignore[misc]
            curated = seconds(curator.step)
            written = seconds(write_plain(store, day + 1, plain))
            speeds.append((count / ingested, count / curated, count / written))
            print(
                f"day {day + 1}: " + ", ".join(f"{s:,.0f}" for s in speeds[-1]) + " rows/s ingested, curated, written", flush=True
            )
        sizes = [o.size_bytes for o in store.list("usage/events/")]
        day_read_s = statistics.median(seconds(read_day(store, DAYS // 2)) for _ in range(5))
        # Each day by its own ratio: a machine that is busy for a while is busy for both.
        figures = {
            "ingest_events_per_s": round(statistics.median(s[0] for s in speeds)),
            "curate_rows_per_s": round(statistics.median(s[1] for s in speeds)),
            "raw_writer_rows_per_s": round(statistics.median(s[2] for s in speeds)),
            "curate_ratio": round(statistics.median(s[1] / s[2] for s in speeds), 3),
            "bytes_per_row": round(sum(sizes) / (DAYS * count), 1),
            "day_of_30_read_s": round(day_read_s, 4),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
