"""What a shipper remembers, as facts in its own journal: what it meant to ship, what it shipped, and who ended.

A pure state: `apply` takes each fact in the order in which it was written, and nothing else changes it. A checkpoint holds
all of it, so that a later life needs to read only from the last checkpoint on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import IntegrityError
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import Position, start_of
from cluster.lake.schema import FIRST_COLUMNS
from cluster.lake.seal import Stretch

CHECKPOINT, INTENT, SHIPPED, ENDED, BROKEN, REMOVED = "checkpoint", "intent", "shipped", "ended", "broken", "removed"
# A checkpoint is cut into facts of at most so many journals each, so that none outgrows a record.
CHECKPOINT_JOURNALS = 1_000

# The shipper's journal, and the number of the batch within it.
IntentKey = tuple[JournalId, int]


@dataclass(frozen=True, slots=True)
class Read:
    """One journal's part of a batch: the facts after `start`, up to and with `end`."""

    journal: JournalId
    start: Position
    end: Position
    # No call that was open at `end` was admitted before here: a later life looks for open calls from here on.
    low: Position

    def to_list(self) -> list[Any]:
        """Return plain values for a fact's body."""
        return [self.journal.writer_id, self.journal.epoch, self.start.to_body(), self.end.to_body(), self.low.to_body()]

    @classmethod
    def from_list(cls, values: list[Any]) -> Read:
        """Return the read that `to_list` wrote."""
        writer_id, epoch, start, end, low = values
        return cls(JournalId(writer_id, epoch), *(Position.from_body(p) for p in (start, end, low)))


@dataclass(frozen=True, slots=True)
class Planned:
    """One object of a batch: its key, its rows' digest and the stretches of journals that it covers."""

    stream: Stream
    key: str
    rows: int
    digest: str
    stretches: tuple[Stretch, ...]

    def to_list(self) -> list[Any]:
        """Return plain values for a fact's body."""
        return [self.stream.value, self.key, self.rows, self.digest, [s.to_list() for s in self.stretches]]

    @classmethod
    def from_list(cls, values: list[Any]) -> Planned:
        """Return the object that `to_list` wrote."""
        stream, key, rows, digest, stretches = values
        return cls(Stream(stream), key, rows, digest, tuple(Stretch.from_list(s) for s in stretches))


@dataclass(frozen=True, slots=True)
class Intent:
    """A batch that is to be shipped under these keys and no others, however often it takes.

    Its rows are a function of the journals, `reads`, `ingest_us` and `columns`, so that they need not be kept. One with the
    number of an earlier one takes its place: it is what the journals still hold of it, under the same keys.
    """

    writer: JournalId
    seq: int
    ingest_us: int
    reads: tuple[Read, ...]
    objects: tuple[Planned, ...]
    # How many columns each stream had when this was planned.
    columns: Mapping[Stream, int]
    # Row digests of the intents whose place this one took. One of those may have been stored before its process died: such an
    # object is the truth, and holds all that this intent's object would.
    earlier: tuple[str, ...] = ()

    @property
    def key(self) -> IntentKey:
        """What names this intent."""
        return self.writer, self.seq

    def to_fact(self) -> Fact:
        """Return the fact that must be on disk before the first PUT."""
        return Fact(Stream.SHIP, {"op": INTENT, **self.to_body()})

    def to_body(self) -> dict[str, Any]:
        """Return plain values for a fact's body."""
        return {
            "writer": str(self.writer),
            "seq": self.seq,
            "ingest_us": self.ingest_us,
            "reads": [r.to_list() for r in self.reads],
            "objects": [o.to_list() for o in self.objects],
            "columns": {s.value: n for s, n in self.columns.items()},
            "earlier": list(self.earlier),
        }

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> Intent:
        """Return the intent that `to_body` wrote."""
        reads = tuple(Read.from_list(r) for r in body["reads"])
        objects = tuple(Planned.from_list(o) for o in body["objects"])
        # The first release wrote neither of these.
        columns = {Stream(s): n for s, n in body["columns"].items()} if "columns" in body else FIRST_COLUMNS
        earlier = tuple(body.get("earlier", ()))
        return cls(JournalId.parse(body["writer"]), body["seq"], body["ingest_us"], reads, objects, columns, earlier)

    def shipped(self) -> Fact:
        """Return the fact that closes this intent."""
        return Fact(Stream.SHIP, {"op": SHIPPED, "writer": str(self.writer), "seq": self.seq})


@dataclass(slots=True)
class ShipState:
    """Everything that a shipper must know to go on where an earlier life stopped."""

    # Where the next batch begins, for each journal that has ever been in one.
    positions: dict[JournalId, Position] = field(default_factory=dict)
    lows: dict[JournalId, Position] = field(default_factory=dict)
    # The last fact of a journal that a segment of the stream covers.
    covered: dict[tuple[Stream, JournalId], int] = field(default_factory=dict)
    # Dead journals that were read to their end and accounted for, and when (microseconds since 1970 UTC).
    ended: dict[JournalId, int] = field(default_factory=dict)
    # Journals in which nothing is read any more. They stay here and on disk: their facts may be nowhere else.
    broken: set[JournalId] = field(default_factory=set)
    # Intents without `shipped`, in order.
    pending: dict[IntentKey, Intent] = field(default_factory=dict)
    # Counts the lives of shippers of this journal directory: the highest one's journal holds the state.
    life: int = 0
    # A checkpoint of which not all parts have been read.
    _partial: ShipState | None = None

    def position(self, journal: JournalId) -> Position:
        """Return where the next batch begins in a journal."""
        return self.positions.get(journal) or start_of(journal)

    def low(self, journal: JournalId) -> Position:
        """Return from where open calls are looked for in a journal."""
        return self.lows.get(journal) or start_of(journal)

    def first_uncovered(self, stream: Stream, journal: JournalId) -> int:
        """Return the first fact of a journal that no segment of the stream covers."""
        return self.covered.get((stream, journal), 0) + 1

    def apply(self, body: dict[str, Any]) -> None:
        """Take one fact of the shipper's own journal."""
        op = body["op"]
        if op == INTENT:
            intent = Intent.from_body(body)
            self.pending[intent.key] = intent
            for read in intent.reads:
                self.positions[read.journal] = read.end
                self.lows[read.journal] = read.low
            for planned in intent.objects:
                for stretch in planned.stretches:
                    self.covered[planned.stream, stretch.journal] = stretch.last
        elif op == SHIPPED:
            self.pending.pop((JournalId.parse(body["writer"]), body["seq"]), None)
        elif op == ENDED:
            journal = JournalId.parse(body["journal"])
            broken = journal in self.broken
            self._forget(journal)
            self.ended[journal] = body["at_us"]
            if broken:
                self.broken.add(journal)
        elif op == BROKEN:
            self.broken.add(JournalId.parse(body["journal"]))
        elif op == REMOVED:
            self._forget(JournalId.parse(body["journal"]))
        elif op == CHECKPOINT:
            self._restore(body)

    def checkpoint(self) -> list[Fact]:
        """Return all of this as facts that are written together."""
        journals = sorted({*self.positions, *self.lows, *self.ended, *self.broken, *(j for _, j in self.covered)})
        entries = [self._entry(j) for j in journals]
        parts = [entries[i : i + CHECKPOINT_JOURNALS] for i in range(0, len(entries), CHECKPOINT_JOURNALS)] or [[]]
        pending = [i.to_body() for i in self.pending.values()]
        return [
            Fact(
                Stream.SHIP,
                {
                    "op": CHECKPOINT,
                    "life": self.life,
                    "part": number,
                    "parts": len(parts),
                    "journals": part,
                    "pending": pending if number == 0 else [],
                },
            )
            for number, part in enumerate(parts)
        ]

    def _entry(self, journal: JournalId) -> list[Any]:
        position, low = self.positions.get(journal), self.lows.get(journal)
        return [
            str(journal),
            position and position.to_body(),
            low and low.to_body(),
            {s.value: self.covered[s, journal] for s in Stream if (s, journal) in self.covered},
            self.ended.get(journal),
            journal in self.broken,
        ]

    def _restore(self, body: dict[str, Any]) -> None:
        if body["part"] == 0:
            self._partial = ShipState(life=body["life"])
        state = self._partial
        if state is None:
            raise IntegrityError("A shipper's checkpoint has no beginning.")
        for name, position, low, covered, ended, broken in body["journals"]:
            journal = JournalId.parse(name)
            if position is not None:
                state.positions[journal] = Position.from_body(position)
            if low is not None:
                state.lows[journal] = Position.from_body(low)
            if ended is not None:
                state.ended[journal] = ended
            if broken:
                state.broken.add(journal)
            state.covered |= {(Stream(s), journal): seq for s, seq in covered.items()}
        for intent in map(Intent.from_body, body["pending"]):
            state.pending[intent.key] = intent
        if body["part"] + 1 == body["parts"]:
            self.positions, self.lows, self.covered = state.positions, state.lows, state.covered
            self.ended, self.broken, self.pending, self.life = state.ended, state.broken, state.pending, state.life
            self._partial = None

    def _forget(self, journal: JournalId) -> None:
        self.positions.pop(journal, None)
        self.lows.pop(journal, None)
        self.ended.pop(journal, None)
        self.broken.discard(journal)
        for stream in Stream:
            self.covered.pop((stream, journal), None)
