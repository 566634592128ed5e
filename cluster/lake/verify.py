"""Checking the raw segments of the lake by themselves: is every row there, once, as it was sealed?

Whoever can rewrite a segment can rewrite its metadata too; against that stand signed checkpoints outside of the store.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InvalidRequestError
from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.lake.layout import parse_segment_key, raw_prefix
from cluster.lake.row_digest import row_digest
from cluster.lake.seal import META, Stretch
from cluster.storage.object_store import ObjectStore

REQUIRED: Final = ("stream", "writer", "epoch", "seq", "rows", "row_digest", "stretches")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was sealed: in which object, in which row (counted from 0; None for the whole), and what."""

    key: str
    row: int | None
    problem: str

    def __str__(self) -> str:
        return f"{self.key}{'' if self.row is None else f' row {self.row}'}: {self.problem}"


def verify_raw(store: ObjectStore, stream: Stream, *, ids_once: bool = True) -> list[Finding]:
    """Read every raw segment of a stream and return what is wrong, in order of keys; an empty list when nothing is.

    With `ids_once`, no event may stand there twice, and the ids of all rows are held in memory.
    Raises StorageError when the store cannot be read.
    """
    findings: list[Finding] = []
    seen: dict[str, tuple[str, int]] = {}
    stretches: dict[JournalId, list[tuple[Stretch, str]]] = defaultdict(list)
    for info in store.list(raw_prefix(stream)):
        if not info.key.endswith(".parquet"):
            continue
        try:
            table = pq.read_table(pa.BufferReader(store.get(info.key)), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as e:
            findings.append(Finding(info.key, None, f"is not a whole Parquet file: {e}"))
            continue
        try:
            covered = _stretches(info.key, stream, table)
        except (ValueError, InvalidRequestError) as e:
            findings.append(Finding(info.key, None, f"its metadata is not that of its key: {e}"))
            continue
        for stretch in covered:
            stretches[stretch.journal].append((stretch, info.key))
        findings += _rows(info.key, table, covered, seen if ids_once else None)
    return findings + list(_tiling(stretches))


def _stretches(key: str, stream: Stream, table: pa.Table) -> list[Stretch]:
    raw = table.schema.metadata or {}
    meta = {name: raw.get(f"{META}{name}".encode(), b"").decode() for name in REQUIRED}
    if missing := [n for n, v in meta.items() if not v]:
        raise ValueError(f"no {', '.join(missing)}")
    named = (Stream(meta["stream"]), meta["writer"], int(meta["epoch"]), int(meta["seq"]))
    if parse_segment_key(key) != named or named[0] is not stream:
        raise ValueError(f"it was sealed as segment {named[3]} of {named[1]}/e{named[2]} on stream {named[0]}")
    return [Stretch.from_list(s) for s in json.loads(meta["stretches"])]


def _rows(key: str, table: pa.Table, covered: list[Stretch], seen: dict[str, tuple[str, int]] | None) -> Iterator[Finding]:
    meta = table.schema.metadata
    if (rows := int(meta[f"{META}rows".encode()])) != table.num_rows:
        yield Finding(key, None, f"has {table.num_rows} rows, and {rows} were sealed")
    if row_digest(table) != meta[f"{META}row_digest".encode()].decode():
        yield Finding(key, None, "its rows are not those that were sealed: their digest differs")
    allowed = {(s.journal.writer_id, s.journal.epoch): s for s in covered}
    columns = [table.column(n).to_pylist() for n in ("event_id", "writer_id", "writer_epoch", "writer_seq")]
    facts: set[tuple[str, int, int]] = set()
    for row, (event_id, writer, epoch, seq) in enumerate(zip(*columns, strict=True)):
        stretch = allowed.get((writer, epoch))
        if stretch is None or seq is None or not stretch.first <= seq <= stretch.last:
            yield Finding(key, row, f"is fact {seq} of {writer}/e{epoch}, which the segment does not cover")
        if (writer, epoch, seq) in facts:
            yield Finding(key, row, f"is fact {seq} of {writer}/e{epoch} a second time")
        facts.add((writer, epoch, seq))
        if seen is None:
            continue
        if event_id in seen:
            other, at = seen[event_id]
            yield Finding(key, row, f"has the event_id {event_id} of {other} row {at}")
        seen.setdefault(event_id, (key, row))


def _tiling(stretches: dict[JournalId, list[tuple[Stretch, str]]]) -> Iterator[Finding]:
    """Find where the segments of a journal overlap, and where one is missing between or before others."""
    for journal, parts in sorted(stretches.items()):
        expected = 1
        for stretch, key in sorted(parts, key=lambda p: (p[0].first, p[0].last, p[1])):
            if stretch.first > expected:
                what = f"no segment covers facts {expected} to {stretch.first - 1} of {journal}, which come before it"
                yield Finding(key, None, what)
            elif stretch.first < expected:
                yield Finding(key, None, f"facts {stretch.first} to {stretch.last} of {journal} are in another segment too")
            expected = max(expected, stretch.last + 1)
