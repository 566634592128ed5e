"""What a holder writes down: each reservation when it begins and ends, so that its death leaves nothing unknown but what ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.journal.writer import JournalWriter
from cluster.limits.account import Held


class LeaseJournal:
    """Writes one holder's facts, each before what it stands for is done. Its lock says that the holder lives."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal

    @property
    def name(self) -> str:
        """Which journal it is."""
        return str(self._journal.journal)

    def opened(self, reservation: str, amounts: Mapping[str, int], agent: str, until_us: int) -> None:
        """Write that `amounts` are reserved; raises StorageError, and then the call must not begin."""
        self._append({"op": "open", "id": reservation, "amounts": dict(amounts), "agent": agent, "until": until_us})

    def closed(self, reservation: str, used: Mapping[str, int]) -> None:
        """Write what a reservation came to; raises StorageError, and then it stays open."""
        self._append({"op": "close", "id": reservation, "used": {name: n for name, n in used.items() if n}})

    def ended(self, accounts: Iterable[str]) -> None:
        """Write that the leases on these accounts ended: what was settled until here is the limiter's to remember."""
        self._append({"op": "end", "accounts": list(accounts)})

    def close(self) -> None:
        """Give up the lock; what is open is looked up by the limiter from now on."""
        self._journal.close()

    def _append(self, body: dict[str, object]) -> None:
        self._journal.append(Fact(Stream.LEASE, body))


@dataclass(slots=True)
class Replayed:
    """A dead holder's journal: what was settled of each account since its lease began, and what is open, by account."""

    settled: dict[str, int] = field(default_factory=dict)
    opened: dict[str, dict[str, Held]] = field(default_factory=dict)


def replay(directory: Path, journal: JournalId) -> Replayed:
    """Read a dead holder's journal to its end; raises IntegrityError for one that was changed."""
    reader, found = JournalReader(directory, journal), Replayed()
    open_ones: dict[str, tuple[dict[str, int], str, int]] = {}
    while facts := reader.read():
        for _, fact in facts:
            body = fact.body
            if body["op"] == "open":
                open_ones[body["id"]] = (body["amounts"], body["agent"], body["until"])
            elif body["op"] == "end":
                for name in body["accounts"]:
                    found.settled.pop(name, None)
            elif (opened := open_ones.pop(body["id"], None)) is not None:
                for name, amount in body["used"].items():
                    found.settled[name] = found.settled.get(name, 0) + min(amount, opened[0].get(name, 0))
    for reservation, (amounts, agent, until_us) in open_ones.items():
        for name, amount in amounts.items():
            found.opened.setdefault(name, {})[reservation] = Held(amount, agent, until_us)
    return found
