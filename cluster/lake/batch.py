"""A batch: rows of several journals, as the objects that they become. The same reads and time always make the same objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pyarrow as pa

from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.lake.layout import ROW_STREAMS, segment_key
from cluster.lake.seal import Refused, Row, Sealed, Stretch, build_table, seal
from cluster.lake.ship_log import Intent, Planned, Read

Rows = dict[Stream, list[Row]]


def no_rows() -> Rows:
    """Return an empty batch."""
    return {s: [] for s in ROW_STREAMS}


def build_tables(
    rows: Rows, ingest_us: int, columns: Mapping[Stream, int] | None = None
) -> tuple[dict[Stream, pa.Table], list[Refused]]:
    """Return each stream's table, and the facts that are no rows; with `columns`, tables of so many columns."""
    tables, refused = {}, []
    for stream, found in rows.items():
        tables[stream], wrong = build_table(stream, found, ingest_us, columns.get(stream) if columns else None)
        refused += wrong
    return tables, refused


def plan_batch(
    writer: JournalId,
    seq: int,
    ingest_us: int,
    *,
    reads: Sequence[Read],
    tables: Mapping[Stream, pa.Table],
    first: Callable[[Stream, JournalId], int],
    even_empty: Collection[Stream] = (),
) -> tuple[Intent, list[Sealed]]:
    """Return the intent for a batch's tables, and its objects in the same order.

    `first` says from which fact of a journal on a stream's object covers it. A stream without rows has no object, unless it is
    among `even_empty`.
    """
    objects, sealed = [], []
    for stream, table in tables.items():
        if not table.num_rows and stream not in even_empty:
            continue
        starts = {r.journal: first(stream, r.journal) for r in reads}
        stretches = tuple(Stretch(r.journal, starts[r.journal], r.end.seq) for r in reads if starts[r.journal] <= r.end.seq)
        one = seal(stream, table, writer=writer, seq=seq, ingest_us=ingest_us, stretches=stretches)
        key = segment_key(stream, ingest_us, writer.writer_id, writer.epoch, seq)
        objects.append(Planned(stream, key, one.rows, one.digest, stretches))
        sealed.append(one)
    columns = {stream: table.num_columns for stream, table in tables.items()}
    return Intent(writer, seq, ingest_us, tuple(reads), tuple(objects), columns), sealed
