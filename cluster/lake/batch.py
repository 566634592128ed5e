"""A batch: rows of several journals, as the objects that they become. The same reads and time always make the same objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from cluster.errors import IntegrityError
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.lake.layout import ROW_STREAMS, segment_key
from cluster.lake.seal import Refused, Row, Sealed, Stretch, build_table, seal
from cluster.lake.ship_log import Intent, Planned, Read, ShipState
from cluster.lake.source import facts_between

Rows = dict[Stream, list[Row]]


def no_rows() -> Rows:
    """Return an empty batch."""
    return {s: [] for s in ROW_STREAMS}


def build_tables(rows: Rows, ingest_us: int) -> tuple[dict[Stream, pa.Table], list[Refused]]:
    """Return each stream's table, and the facts that are no rows."""
    tables, refused = {}, []
    for stream, found in rows.items():
        tables[stream], wrong = build_table(stream, found, ingest_us)
        refused += wrong
    return tables, refused


def plan_batch(
    writer: JournalId, seq: int, ingest_us: int, *, reads: Sequence[Read], tables: Mapping[Stream, pa.Table], state: ShipState
) -> tuple[Intent, list[Sealed]]:
    """Return the intent for a batch's tables, and its objects in the same order."""
    objects, sealed = [], []
    for stream, table in tables.items():
        if not table.num_rows:
            continue
        starts = {r.journal: state.first_uncovered(stream, r.journal) for r in reads}
        stretches = tuple(Stretch(r.journal, starts[r.journal], r.end.seq) for r in reads)
        one = seal(stream, table, writer=writer, seq=seq, ingest_us=ingest_us, stretches=stretches)
        key = segment_key(stream, ingest_us, writer.writer_id, writer.epoch, seq)
        objects.append(Planned(stream, key, one.rows, one.digest, stretches))
        sealed.append(one)
    return Intent(writer, seq, ingest_us, tuple(reads), tuple(objects)), sealed


def seal_again(directory: Path, intent: Intent) -> list[Sealed]:
    """Return an earlier life's objects, made from the journals once more.

    Raises IntegrityError when the journals do not hold the same rows any more.
    """
    rows = no_rows()
    for read in intent.reads:
        for seq, fact in facts_between(directory, read.journal, read.start, read.end.seq):
            if fact.stream in rows:
                rows[fact.stream].append(Row(read.journal, seq, fact.body))
    tables, _ = build_tables(rows, intent.ingest_us)
    return [_sealed_as(intent, planned, tables[planned.stream]) for planned in intent.objects]


def _sealed_as(intent: Intent, planned: Planned, table: pa.Table) -> Sealed:
    one = seal(
        planned.stream,
        table,
        writer=intent.writer,
        seq=intent.seq,
        ingest_us=intent.ingest_us,
        stretches=planned.stretches,
    )
    if one.digest != planned.digest:
        raise IntegrityError(f"The journals no longer hold the rows that were sealed for {planned.key}.")
    return one
