"""One journal as the shipper sees it: how far it was read, and which of its calls are open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import IntegrityError
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader, Position
from cluster.journal.usage_event import CallAdmitted, UsageEvent, UsageKind, lost_event, lost_event_id
from cluster.lake.seal import Refused, Row

# What ends a call; an interim event does not.
_ENDS = frozenset({UsageKind.FINAL.value, UsageKind.VOID.value, UsageKind.LOST.value})
READ_FACTS = 10_000


@dataclass(slots=True)
class JournalSource:
    """A reader, and the calls that were admitted before its position and have no last usage event yet."""

    reader: JournalReader
    # By event_id: the call, and a position before the fact that admitted it.
    open_calls: dict[str, tuple[CallAdmitted, Position]] = field(default_factory=dict)
    # Dead, and nothing more to read.
    drained: bool = False
    # Why nothing more is read from it; empty while all is well.
    broken: str = ""
    # Facts on stream call that name no call, found since someone last took them away.
    refused: list[Refused] = field(default_factory=list)

    @property
    def journal(self) -> JournalId:
        """Which journal this is."""
        return self.reader.journal

    def low(self) -> Position:
        """Return a position before which no open call was admitted."""
        return min((p for _, p in self.open_calls.values()), key=lambda p: p.seq, default=self.reader.position)

    def read(self, limit: int) -> list[tuple[int, Fact]]:
        """Return up to `limit` new facts and follow their calls; raises IntegrityError, and `drained` when it has ended."""
        # Asked before the read: what a writer wrote before it died is found by a read after its death.
        alive = self.reader.is_alive()
        before = self.reader.position
        facts = self.reader.read(limit)
        self.follow(facts, before)
        self.drained = not facts and not alive
        return facts

    def follow(self, facts: list[tuple[int, Fact]], before: Position) -> None:
        """Open and close the calls that these facts, which begin after `before`, admit and end."""
        for seq, fact in facts:
            if fact.stream is Stream.CALL:
                try:
                    admitted = CallAdmitted.from_body(fact.body)
                    lost_event_id(admitted.event_id)
                except (IntegrityError, ValueError) as e:
                    self.refused.append(Refused(Row(self.journal, seq, fact.body), str(e)))
                    continue
                self.open_calls[admitted.event_id] = (admitted, before)
            elif fact.stream is Stream.USAGE and fact.body.get("kind") in _ENDS:
                self.open_calls.pop(str(fact.body.get("event_id")), None)

    def take_refused(self) -> list[Refused]:
        """Return the refused facts found since the last time."""
        taken, self.refused = self.refused, []
        return taken

    def lost(self) -> list[UsageEvent]:
        """Return the `lost` event of each open call, in order of their ids; of meaning once the journal is drained."""
        return [lost_event(admitted) for _, (admitted, _) in sorted(self.open_calls.items())]


def open_source(directory: Path, journal: JournalId, low: Position, position: Position) -> JournalSource:
    """Return the source standing at `position`, with the calls open there, found by reading from `low`.

    A journal that cannot be read that far is returned as broken, with the calls found before the break.
    """
    source = JournalSource(JournalReader(directory, journal, low))
    try:
        for before, facts in _until(source.reader, position.seq):
            source.follow(facts, before)
        if not _is_at(source.reader, position):
            source.broken = f"the journal {journal} is not what it was when it was read up to record {position.seq}"
    except IntegrityError as e:
        source.broken = e.detail
    # Those found on the way were reported by the life that read them first.
    source.refused.clear()
    return source


def _until(reader: JournalReader, seq: int) -> Iterator[tuple[Position, list[tuple[int, Fact]]]]:
    while reader.position.seq < seq:
        before = reader.position
        facts = reader.read(min(READ_FACTS, seq - before.seq))
        if not facts:
            return
        yield before, facts


def read_again(
    directory: Path, journal: JournalId, start: Position, end: Position
) -> tuple[list[tuple[int, Fact]], Position, str]:
    """Return the facts after `start` that were once read up to `end`, where they end now, and why that is not `end`.

    The reason is empty when all are there. Otherwise the facts are those before the break.
    """
    reader = JournalReader(directory, journal, start)
    found: list[tuple[int, Fact]] = []
    try:
        for _, facts in _until(reader, end.seq):
            found += facts
    except IntegrityError as e:
        return found, reader.position, e.detail
    if reader.position.seq < end.seq:
        why = f"The journal {journal} ends at record {reader.position.seq}, before {end.seq} that was read from it."
        return found, reader.position, why
    if not _is_at(reader, end):
        # It was written anew, and nothing says from which record on.
        return [], start, f"The journal {journal} is not what it was when it was read up to record {end.seq}."
    return found, end, ""


def _is_at(reader: JournalReader, position: Position) -> bool:
    """Return whether the same records stand before both: after a full segment, or at the start of the next, is one place."""
    return (reader.position.seq, reader.position.chain) == (position.seq, position.chain)
