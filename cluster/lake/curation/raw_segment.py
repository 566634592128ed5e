"""Reading a raw segment for curation: all of its rows as they were sealed, or none."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from cluster.errors import IntegrityError
from cluster.journal.fact import Stream
from cluster.lake.curation import rows_file
from cluster.lake.curation.document import digest
from cluster.lake.curation.plan import PlannedSegment
from cluster.lake.layout import parse_segment_key
from cluster.lake.row_digest import row_digest
from cluster.lake.schema import SCHEMAS, first_columns
from cluster.lake.seal import META

_NAMED: Final = ("stream", "writer", "epoch", "seq", "row_digest")


def read_segment(key: str, data: bytes) -> tuple[PlannedSegment, pa.Table]:
    """Return what a plan says of a segment, and its rows; raises IntegrityError unless it is what its key and metadata say."""
    table = rows_file.read_rows(key, data)
    raw = table.schema.metadata or {}
    meta = [raw.get(f"{META}{name}".encode(), b"").decode() for name in _NAMED]
    named = parse_segment_key(key)
    if named is None or meta[:-1] != [str(part) for part in named]:
        raise IntegrityError(f"{key} holds a segment that was sealed under another key.")
    found = row_digest(table)
    if found != meta[-1]:
        raise IntegrityError(f"{key} does not hold the rows that were sealed: their digest differs.")
    _, writer, epoch, seq = named
    return PlannedSegment(key, writer, epoch, seq, table.num_rows, found, digest(data)), table


def as_columns(key: str, table: pa.Table, columns: int) -> pa.Table:
    """Return a segment's rows with the first `columns` columns of the lake, empty where an earlier release had none.

    Raises IntegrityError when its columns are others, or more than that: a later release sealed it.
    """
    schema = first_columns(Stream.USAGE, columns)
    if len(schema) != columns:
        raise IntegrityError(
            f"Rows of {columns} columns are planned, and this release has {len(schema)}.", hint="Upgrade this one."
        )
    if table.num_columns > columns:
        raise IntegrityError(
            f"{key} has {table.num_columns} columns, more than the {columns} of this release.", hint="Upgrade it."
        )
    if list(table.schema) != list(schema)[: table.num_columns]:
        raise IntegrityError(f"{key} does not have the lake's columns.")
    empty = [pa.nulls(table.num_rows, f.type) for f in list(schema)[table.num_columns :]]
    return pa.table([*table.columns, *empty], schema=schema)


def all_columns() -> int:
    """Return how many columns a row has in this release."""
    return len(SCHEMAS[Stream.USAGE])
