"""Checking a journal from its first byte to its last: is it what was written?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import IntegrityError
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader


@dataclass(frozen=True, slots=True)
class JournalCheck:
    """What a journal holds. `error` names file and record when it was changed, and is empty when it was not."""

    journal: JournalId
    records: int
    alive: bool
    # Bytes after the last whole record: of a dead journal what a crash tore, of a live one what is being written.
    torn_bytes: int
    # Chain value of the last record: it stands for the whole journal up to there.
    chain: bytes
    error: str


def verify_journal(directory: Path, journal: JournalId) -> JournalCheck:
    """Read every record of a journal and follow its chain; returns what was found and raises nothing for a changed one."""
    reader = JournalReader(directory, journal)
    alive, error = reader.is_alive(), ""
    try:
        while reader.read():
            pass
    except IntegrityError as e:
        error = e.detail
    at = reader.position
    return JournalCheck(journal, at.seq, alive, reader.torn_bytes(), at.chain, error)
