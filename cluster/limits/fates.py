"""What became of calls whose callers do not know, or are gone: their agents' journals say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.agents.budget import NO_BUDGET, Budget
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.usage_event import UsageKind

# After a call's deadline, how long an agent may still find it on its way in.
GRACE_US: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Fate:
    """What a reservation has spent; `lost` when nobody said so, and nobody is there any more who would."""

    spent: Budget
    lost: bool = False


@dataclass(slots=True)
class _Seen:
    """One agent's journal, as far as it was read, with what it says of the reservations that were asked for."""

    reader: JournalReader
    wanted: frozenset[str]
    alive: bool = True
    admitted: set[str] = field(default_factory=set)
    spent: dict[str, Budget] = field(default_factory=dict)


class Fates:
    """Reads agents' journals on all nodes whose folders are here. For one thread."""

    def __init__(self, directories: Callable[[], Iterable[Path]]) -> None:
        self._directories = directories
        self._seen: dict[tuple[Path, JournalId], _Seen] = {}

    def finals(self, asked: Mapping[str, str]) -> dict[str, Budget]:
        """Return what reservations have spent whose agents have said so; `asked` has their agents."""
        journals = self._read(frozenset(asked), {f"agent.{agent}" for agent in asked.values()})
        said = {r: _first(s.spent.get(r) for s in journals) for r in asked}
        return {r: spent for r, spent in said.items() if spent is not None}

    def of(self, asked: Mapping[str, tuple[str, int]], now_us: int) -> dict[str, Fate]:
        """Return the fate of each reservation, of those of which it is known; `asked` has their agents and deadlines.

        What an agent took on is known when it has written the end, or has died and written none: then it is lost, and only
        its sub-calls may have spent anything. What no agent took on is known to be nothing once its time is up.
        """
        wanted = frozenset(asked)
        writers = {f"agent.{agent}" for agent, _ in asked.values()}
        journals = self._read(wanted, writers)
        lost: set[str] = set()
        found: dict[str, Fate] = {}
        for reservation, (_, until_us) in asked.items():
            if (spent := _first(s.spent.get(reservation) for s in journals)) is not None:
                found[reservation] = Fate(spent)
                continue
            at = [s for s in journals if reservation in s.admitted]
            if any(s.alive for s in at):
                continue
            if at or now_us > until_us + GRACE_US:
                lost.add(reservation)
        return found | {r: Fate(spent, lost=True) for r, spent in self._lost({r: asked[r][0] for r in lost}).items()}

    def _lost(self, lost: Mapping[str, str]) -> dict[str, Budget]:
        """Return what the sub-calls of lost calls have spent, unless some of them still run."""
        if not lost:
            return {}
        tenants = {agent.partition(".")[0] for agent in lost.values()}
        found = dict.fromkeys(lost, NO_BUDGET)
        running: set[str] = set()
        for directory, journal in self._journals():
            if any(journal.writer_id.startswith(f"agent.{tenant}.") for tenant in tenants):
                seen = _Seen(JournalReader(directory, journal), frozenset(lost))
                _read_on(seen)
                for reservation, spent in seen.spent.items():
                    if (parent := _parent(reservation, seen.wanted)) is not None:
                        found[parent] += spent
                if seen.alive:
                    running |= {p for r in seen.admitted - set(seen.spent) if (p := _parent(r, seen.wanted)) is not None}
        return {r: spent for r, spent in found.items() if r not in running}

    def _read(self, wanted: frozenset[str], writers: set[str]) -> list[_Seen]:
        there = {key for key in self._journals() if key[1].writer_id in writers}
        self._seen = {key: seen for key, seen in self._seen.items() if key in there}
        for key in there:
            seen = self._seen.get(key)
            if seen is None or not wanted <= seen.wanted:
                # From the start on: the new ones may stand anywhere.
                seen = self._seen[key] = _Seen(JournalReader(*key), wanted)
            _read_on(seen)
        return list(self._seen.values())

    def _journals(self) -> Iterable[tuple[Path, JournalId]]:
        for directory in self._directories():
            for journal in list_journals(directory):
                yield directory, journal


def _read_on(seen: _Seen) -> None:
    if not seen.alive:
        return
    # Asked before the read: what a writer wrote before it died is found by a read after its death.
    seen.alive = seen.reader.is_alive()
    while facts := seen.reader.read():
        for _, fact in facts:
            _take(seen, fact)


def _take(seen: _Seen, fact: Fact) -> None:
    if fact.stream not in (Stream.CALL, Stream.USAGE):
        return
    body = fact.body
    reservation = str(body.get("reservation_id"))
    if reservation not in seen.wanted and _parent(reservation, seen.wanted) is None:
        return
    if fact.stream is Stream.CALL:
        seen.admitted.add(reservation)
    elif body.get("kind") == UsageKind.FINAL.value:
        tokens, micro_usd = body.get("spent") or (0, 0)
        seen.spent[reservation] = Budget(tokens, micro_usd)


def _parent(reservation: str, wanted: frozenset[str]) -> str | None:
    """Return the reservation among `wanted` that this one draws on; the names of sub-calls begin with their callers'."""
    head = reservation.partition(".")[0]
    return head if head != reservation and head in wanted else None


def _first(values: Iterable[Budget | None]) -> Budget | None:
    return next((v for v in values if v is not None), None)
