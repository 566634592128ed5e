"""Facts to Parquet: the same facts and the same ingest time always make the same rows, and the same bytes with one library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import IntegrityError
from cluster.journal.audit_event import AuditEvent, AuditOutcome
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.usage_event import Outcome, UsageEvent, UsageKind
from cluster.lake.row_digest import row_digest
from cluster.lake.schema import SCHEMAS, SEALED_COLUMNS, first_columns

ROW_GROUP_ROWS: Final = 250_000
ZSTD_LEVEL: Final = 3
META: Final = "sovereign."


@dataclass(frozen=True, slots=True)
class Row:
    """A fact that is to be a row: its body, and where it stands."""

    journal: JournalId
    seq: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a journal: facts `first` to `last`, both included. A segment holds all of its stream's rows in it."""

    journal: JournalId
    first: int
    last: int

    def to_list(self) -> list[Any]:
        """Return plain values for JSON or a fact's body: journal, epoch, from, to."""
        return [self.journal.writer_id, self.journal.epoch, self.first, self.last]

    @classmethod
    def from_list(cls, values: list[Any]) -> Stretch:
        """Return the stretch that `to_list` wrote."""
        writer_id, epoch, first, last = values
        return cls(JournalId(writer_id, epoch), first, last)


@dataclass(frozen=True, slots=True)
class Refused:
    """A fact that cannot be a row, and why; it stays in the audit log as it is."""

    row: Row
    reason: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment, ready to be stored: `digest` is that of its rows, `sha256` that of its bytes."""

    data: bytes
    rows: int
    digest: str
    sha256: str


def build_table(
    stream: Stream, rows: Sequence[Row], ingest_us: int, columns: int | None = None
) -> tuple[pa.Table, list[Refused]]:
    """Return the rows as a table of the stream's schema, in the order given, and those that are no rows.

    With `columns`, of the schema as it was when it had so many.
    """
    schema = SCHEMAS[stream] if columns is None else first_columns(stream, columns)
    try:
        return _table(stream, schema, rows, ingest_us), []
    except (ValueError, KeyError, TypeError, OverflowError):
        # Some fact is not as this release writes it. One by one is ten times slower and says which, and why.
        good: list[Row] = []
        refused: list[Refused] = []
        check: Callable[[dict[str, Any]], UsageEvent | AuditEvent]
        check = UsageEvent.from_body if stream is Stream.USAGE else AuditEvent.from_body
        for row in rows:
            try:
                whole = Row(row.journal, row.seq, check(row.body).to_body())
                _table(stream, schema, [whole], ingest_us)
            except IntegrityError as e:
                refused.append(Refused(row, str(e)))
            except (ValueError, KeyError, TypeError, OverflowError) as e:
                refused.append(Refused(row, f"{type(e).__name__}: {e}"))
            else:
                good.append(whole)
        return _table(stream, schema, good, ingest_us), refused


def seal(stream: Stream, table: pa.Table, *, writer: JournalId, seq: int, ingest_us: int, stretches: Sequence[Stretch]) -> Sealed:
    """Return a table as the shipper's `seq`-th segment; what is needed to check it later stands in its own metadata."""
    digest = row_digest(table)
    metadata = {
        "format": "1",
        "stream": str(stream),
        "writer": writer.writer_id,
        "epoch": str(writer.epoch),
        "seq": str(seq),
        "ingest_time_us": str(ingest_us),
        "rows": str(table.num_rows),
        "row_digest": digest,
        "stretches": json.dumps([s.to_list() for s in stretches], separators=(",", ":")),
    }
    data = write_parquet(table.replace_schema_metadata({META + k: v for k, v in metadata.items()}))
    return Sealed(data, table.num_rows, digest, hashlib.sha256(data).hexdigest())


def write_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file with the settings of the lake."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP_ROWS, compression="zstd", compression_level=ZSTD_LEVEL, write_page_checksum=True
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


_ENUMS: Final = {
    Stream.USAGE: {"kind": frozenset(map(str, UsageKind)), "outcome": frozenset(map(str, Outcome))},
    Stream.AUDIT: {"outcome": frozenset(map(str, AuditOutcome))},
}
# Columns that may be empty.
_OPTIONAL: Final = {
    Stream.USAGE: {f.name for f in fields(UsageEvent) if f.default is None},
    Stream.AUDIT: {f.name for f in fields(AuditEvent) if f.default is None},
}


def _table(stream: Stream, schema: pa.Schema, rows: Sequence[Row], ingest_us: int) -> pa.Table:
    """Build column by column; raises ValueError, KeyError, TypeError or OverflowError when any value is not of its type."""
    bodies = [r.body for r in rows]
    sealed: dict[str, list[Any]] = {
        "ingest_time": [ingest_us] * len(rows),
        "writer_id": [r.journal.writer_id for r in rows],
        "writer_epoch": [r.journal.epoch for r in rows],
        "writer_seq": [r.seq for r in rows],
    }
    arrays = []
    for field in schema:
        name = field.name
        if name in SEALED_COLUMNS:
            arrays.append(pa.array(sealed[name], type=field.type))
            continue
        values = [b[name] for b in bodies]
        _check(values, field.type, name in _OPTIONAL[stream], _ENUMS[stream].get(name))
        arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _check(values: list[Any], kind: pa.DataType, optional: bool, allowed: frozenset[str] | None) -> None:
    """Raise ValueError unless every value is exactly of the column's type: Arrow by itself cuts 1.5 to 1."""
    wanted: type = str if pa.types.is_string(kind) else bool if pa.types.is_boolean(kind) else int
    found = set(map(type, values))
    if optional:
        found.discard(type(None))
    # A text may be of a subclass, as a StrEnum's members are; an integer may not, as True and False are.
    if wrong := {t for t in found if t is not wanted and not (wanted is str and issubclass(t, str))}:
        raise ValueError(f"a value of {wrong} in a column of {wanted}")
    if wanted is int and values and min(v for v in values if v is not None) < 0:
        raise ValueError("a negative quantity")
    if allowed is not None and not allowed.issuperset(values):
        raise ValueError(f"a value outside {sorted(allowed)}")
