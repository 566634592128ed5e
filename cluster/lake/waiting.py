"""How many bytes of the node's journals are not known to be in the lake."""

from __future__ import annotations

from pathlib import Path

from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.lake.ship_log import ShipState


def waiting_bytes(directory: Path, state: ShipState, own: JournalId) -> int:
    """Return the bytes behind what the store has taken, over all journals but the shipper's `own`.

    A batch that is sealed and not stored still waits. May be asked by another thread than the one that changes `state`: what
    is shipped meanwhile may count as waiting, never the other way round.
    """
    # Copies, each made in one step. Pending last: an intent is there before its positions move, and goes when it is stored.
    positions, done = dict(state.positions), {*state.ended.copy(), *state.broken.copy()}
    for intent in reversed(list(state.pending.values())):
        positions |= {read.journal: read.start for read in intent.reads}
    total = 0
    for journal in list_journals(directory):
        # Its own journal always has the `shipped` of the last batch behind it.
        if journal != own and journal not in done:
            try:
                total += JournalReader(directory, journal, positions.get(journal)).backlog_bytes()
            except FileNotFoundError:  # it was removed just now
                continue
    return total
