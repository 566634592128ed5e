"""An earlier life's batch, made from the journals once more: as it was planned, or as much of it as they still hold.

What can't be made as planned gets a new intent, which takes the old one's place under the same keys. A key is created once,
so that the store decides between the two, whichever PUT arrives and when: the old object, with all rows, or the new one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import Position, start_of
from cluster.lake.batch import Rows, build_tables, no_rows, plan_batch
from cluster.lake.seal import Refused, Row, Sealed, seal
from cluster.lake.ship_log import Intent, Read, ShipState
from cluster.lake.source import read_again


@dataclass(frozen=True, slots=True)
class BrokenRead:
    """A read that its journal no longer holds as it was planned: up to where it does, and why no further."""

    planned: Read
    good: Position
    why: str


@dataclass(frozen=True, slots=True)
class Resealed:
    """What is to be shipped now: the intent that was planned, or the one that takes its place; and its objects, in order."""

    intent: Intent
    sealed: list[Sealed]
    # Empty, both, when the intent is the one that was planned.
    broken: list[BrokenRead]
    refused: list[Refused]


def reseal(directory: Path, intent: Intent, state: ShipState) -> Resealed:
    """Return an earlier life's batch as it can be shipped now; changes nothing."""
    rows, reads, broken = no_rows(), list[Read](), list[BrokenRead]()
    for read in intent.reads:
        facts, good, why = read_again(directory, read.journal, read.start, read.end)
        for seq, fact in facts:
            if fact.stream in rows:
                rows[fact.stream].append(Row(read.journal, seq, fact.body))
        if why:
            broken.append(BrokenRead(read, good, why))
            # `low` spoke of an end that is not there any more: calls open at this one may have been admitted anywhere before.
            reads.append(Read(read.journal, read.start, good, start_of(read.journal)))
        else:
            reads.append(read)
    sealed = [] if broken else _as_planned(intent, rows)
    if not broken and [one.digest for one in sealed] == [p.digest for p in intent.objects]:
        return Resealed(intent, sealed, [], [])
    # A journal is broken, or this release makes other rows of the same facts: all of it is as this release makes it.
    tables, refused = build_tables(rows, intent.ingest_us)
    began = {(p.stream, s.journal): s.first for p in intent.objects for s in p.stretches}

    def first(stream: Stream, journal: JournalId) -> int:
        return began.get((stream, journal)) or state.first_uncovered(stream, journal)

    # Each key that was planned is taken, be it by no rows: what covers the whole journals so far must be in the lake.
    planned = {p.stream for p in intent.objects}
    remade, sealed = plan_batch(
        intent.writer, intent.seq, intent.ingest_us, reads=reads, tables=tables, first=first, even_empty=planned
    )
    earlier = (*intent.earlier, *(p.digest for p in intent.objects))
    return Resealed(replace(remade, earlier=earlier), sealed, broken, refused)


def _as_planned(intent: Intent, rows: Rows) -> list[Sealed]:
    tables, _ = build_tables(rows, intent.ingest_us, intent.columns)
    return [
        seal(
            planned.stream,
            tables[planned.stream],
            writer=intent.writer,
            seq=intent.seq,
            ingest_us=intent.ingest_us,
            stretches=planned.stretches,
        )
        for planned in intent.objects
    ]
