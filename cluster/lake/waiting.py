"""How many bytes of the node's journals are not known to be in the lake."""

from __future__ import annotations

from pathlib import Path

from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader, Position
from cluster.lake.ship_log import Read, ShipState


def waiting_bytes(directory: Path, state: ShipState, own: JournalId) -> int:
    """Return the bytes behind what the store has taken, over all journals but the shipper's `own`.

    A batch that is sealed and not stored still waits, also what it holds of journals of which no more is taken: those that
    ended, and those that are broken. May be asked by another thread than the one that changes `state`: what
    is shipped meanwhile may count as waiting, never the other way round.
    """
    # Copies, each made in one step. Pending last: an intent is there before its positions move, and goes when it is stored.
    positions, done = dict(state.positions), {*state.ended.copy(), *state.broken.copy()}
    pending = [read for intent in list(state.pending.values()) for read in intent.reads]
    for read in reversed(pending):
        positions[read.journal] = read.start
    total = 0
    for journal in list_journals(directory):
        # Its own journal always has the `shipped` of the last batch behind it.
        if journal == own:
            continue
        try:
            if journal not in done:
                total += _bytes_after(directory, journal, positions.get(journal))
            else:
                total += sum(_bytes_of(directory, read) for read in pending if read.journal == journal)
        except FileNotFoundError:  # it was removed just now
            continue
    return total


def _bytes_of(directory: Path, read: Read) -> int:
    after_end = _bytes_after(directory, read.journal, read.end)
    return max(0, _bytes_after(directory, read.journal, read.start) - after_end)


def _bytes_after(directory: Path, journal: JournalId, position: Position | None) -> int:
    return JournalReader(directory, journal, position).backlog_bytes()
