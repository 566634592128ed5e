"""What a fact costs in the journal, and a row in Parquet, each against the same bytes without our work.

The last line is one JSON object: {"facts_per_s", "raw_write_per_s", "ratio", "parquet_rows_per_s", "raw_parquet_rows_per_s",
"bytes_per_row"}. *Facts*: realistic usage events, built, encoded, chained and appended by one thread. *Raw*: `os.write` of ready
bytes of the same sizes to a file. *Parquet rows*: facts as they come from a journal, to the bytes of a sealed segment. *Raw
Parquet*: `pyarrow.parquet.write_table` of the same rows, as a table made before. `bytes_per_row` is of the sealed segment.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.identity.ids import uuid7
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.journal.usage_event import Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter
from cluster.lake.seal import Row, Stretch, build_table, seal

ROUNDS = 7
FACTS = 20_000
SLICE = 1_000
# What one of these events takes in the journal.
RECORD_BYTES = 813
START_US = 1_790_000_000_000_000
WRITER = "agent.acme.strategic-planner-001"
RAW = """{"prompt_tokens": %d, "completion_tokens": %d, "prompt_tokens_details": {"cached_tokens": %d}, "total_tokens": %d}"""


def calls(count: int, seed: int) -> list[dict[str, Any]]:
    """What an agent knows at the end of each call; ids and texts as they are in production, no two alike."""
    rng = random.Random(seed)
    return [
        {
            "event_id": uuid7(),
            "invocation_id": uuid7(),
            "reservation_id": uuid7(),
            "trace_id": rng.randbytes(16).hex(),
            "started": START_US + i * 1_733,
            "latency": rng.randrange(2_000, 4_000_000),
            "uncached": (uncached := rng.randrange(50, 8_000)),
            "cached": (cached := rng.randrange(2_000)),
            "output": (output := rng.randrange(5, 900)),
            "raw": RAW % (uncached + cached, output, cached, uncached + cached + output),
        }
        for i in range(count)
    ]


def append_all(writer: JournalWriter, ended: list[dict[str, Any]]) -> None:
    """The end of each call, as an agent's process does it: build the event, write the fact."""
    for c in ended:
        event = UsageEvent(
            event_id=c["event_id"],
            kind=UsageKind.FINAL,
            event_time=c["started"] + c["latency"],
            start_time=c["started"],
            tenant_id="acme",
            project_id="market-research",
            agent_id="strategic-planner-001",
            agent_version="3",
            invocation_id=c["invocation_id"],
            reservation_id=c["reservation_id"],
            model="openai:gpt-5-mini",
            outcome=Outcome.OK,
            billable=True,
            trace_id=c["trace_id"],
            tokens_input_uncached=c["uncached"],
            tokens_cache_read=c["cached"],
            tokens_output=c["output"],
            tool_calls=2,
            cpu_us=c["latency"] // 9,
            reserved_cpu_milli_ms=c["latency"],
            mem_mib_ms=c["latency"] * 2,
            latency_us=c["latency"],
            queue_us=c["latency"] // 70,
            provider_usage_raw=c["raw"],
        )
        writer.append(Fact(Stream.USAGE, event.to_body()))


def write_all(fd: int, records: list[bytes]) -> None:
    """The same bytes without us."""
    for record in records:
        os.write(fd, record)


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def journal_round(folder: Path, number: int, ended: list[dict[str, Any]]) -> tuple[list[tuple[float, float]], list[Row]]:
    """Return (facts a second, raw writes a second) of each slice, and the facts as the shipper reads them.

    The two sides take turns in small slices, so that a machine that is busy for a moment is busy for both.
    """
    speeds, raw_file = [], folder / f"raw-{number}"
    fd = os.open(raw_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with JournalWriter(folder, WRITER, number) as writer:
        reader = JournalReader(folder, writer.journal)
        facts: list[tuple[int, Fact]] = []
        for begin in range(0, len(ended), SLICE):
            part = ended[begin : begin + SLICE]
            records = [os.urandom(RECORD_BYTES)] * len(part)
            # Turn about, who goes first.
            if begin // SLICE % 2:
                raw = seconds(partial(write_all, fd, records))
                ours = seconds(partial(append_all, writer, part))
            else:
                ours = seconds(partial(append_all, writer, part))
                raw = seconds(partial(write_all, fd, records))
            speeds.append((len(part) / ours, len(part) / raw))
        while found := reader.read():
            facts += found
        assert [f.body["event_id"] for _, f in facts] == [c["event_id"] for c in ended]
        written = reader.position.offset / len(ended)
    os.close(fd)
    assert abs(written - RECORD_BYTES) < 20, f"a record has {written:.0f} bytes; raw writes have {RECORD_BYTES}"
    return speeds, [Row(JournalId(WRITER, number), seq, f.body) for seq, f in facts]


def parquet_round(rows: list[Row]) -> tuple[float, float, float]:
    """Return rows sealed a second, rows written a second by pyarrow alone, and bytes a row."""
    journal = rows[0].journal
    table, refused = build_table(Stream.USAGE, rows, START_US)
    assert not refused

    def ours() -> bytes:
        built, _ = build_table(Stream.USAGE, rows, START_US)
        stretch = Stretch(journal, 1, len(rows))
        return seal(Stream.USAGE, built, writer=JournalId("shipper.n1", 1), seq=1, ingest_us=START_US, stretches=[stretch]).data

    def raw() -> None:
        pq.write_table(table, pa.BufferOutputStream(), compression="zstd", compression_level=3, write_page_checksum=True)

    size = len(ours()) / len(rows)
    # ABBA, and the better of two of each: a stop of the machine in between is not ours.
    took, alone = zip(*((seconds(ours), seconds(raw)), (seconds(raw), seconds(ours))[::-1]), strict=True)
    return len(rows) / min(took), len(rows) / min(alone), size


def main() -> None:
    """Measure round by round and print the medians."""
    speeds: list[tuple[float, float]] = []
    parquet: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, ROUNDS + 1):
            slices, rows = journal_round(Path(folder), number, calls(FACTS, number))
            speeds += slices
            parquet.append(parquet_round(rows))
            print(f"round {number}: {middle(s[0] for s in slices):,.0f} facts/s, {parquet[-1][0]:,.0f} rows/s", flush=True)
    result = {
        "facts_per_s": round(middle(s[0] for s in speeds)),
        "raw_write_per_s": round(middle(s[1] for s in speeds)),
        "ratio": round(middle(s[0] / s[1] for s in speeds), 3),
        "parquet_rows_per_s": round(middle(p[0] for p in parquet)),
        "raw_parquet_rows_per_s": round(middle(p[1] for p in parquet)),
        "bytes_per_row": round(middle(p[2] for p in parquet), 1),
    }
    print(json.dumps(result))


def middle(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(list(values))


if __name__ == "__main__":
    main()
