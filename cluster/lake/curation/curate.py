"""What becomes of a plan's raw rows: curated once, or quarantined with a reason, or dropped and counted. No I/O but `Earlier`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

import pyarrow as pa

from cluster.clock import utc
from cluster.journal.usage_event import UsageKind, lost_event_id
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.screen import Reason, id_day, screen
from cluster.lake.curation.seen import MILLISECOND, payloads

DAY_US: Final = 86_400_000_000


class Earlier(Protocol):
    """What plans before a given one curated; see `Seen`."""

    def events(self, before: int, day: str, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return what is said of those of `ids` that are there."""
        ...

    def minted_with(self, before: int, day: str, ids: Collection[str], *, lost: bool = False) -> list[str]:
        """Return the ids that are there and were minted in the same millisecond as any of `ids`."""
        ...


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of each row, by its position. What is in none of these is curated, on the day that `days` names."""

    quarantined: dict[int, Reason]
    duplicate: set[int]
    # Losses of calls whose last event is there after all.
    superseded: set[int]
    # UTC day of the event's id, of every curated row.
    days: dict[int, str]
    # Curated rows whose call stands as lost in what earlier plans curated.
    revives: set[int]


def decide(table: pa.Table, plan: Plan, earlier: Earlier) -> Fates:
    """Return the fate of each row of a plan, whose rows are in the plan's order: of equal ids, the first is the event."""
    reasons = screen(table, plan)
    fates = Fates({row: reason for row, reason in enumerate(reasons) if reason}, set(), set(), {}, set())
    deciding = _Deciding(table, plan.number, earlier, fates)
    deciding.settle_ids()
    deciding.settle_losses()
    return fates


@cache
def _day_of(days: int) -> str:
    return f"{utc(days * DAY_US):%Y-%m-%d}"


class _Deciding:
    """The rows of one plan on their way to their fates."""

    def __init__(self, table: pa.Table, number: int, earlier: Earlier, fates: Fates) -> None:
        self._table = table
        self._number = number
        self._earlier = earlier
        self._fates = fates
        self._ids: list[str] = table.column("event_id").to_pylist()
        # Of each id, its first row that is not in quarantine.
        self._first: dict[str, int] = {}

    def settle_ids(self) -> None:
        """Give every sound row its day, but for those whose id was there before."""
        again: list[int] = []
        by_day: dict[str, list[str]] = defaultdict(list)
        for row, event_id in enumerate(self._ids):
            if row in self._fates.quarantined:
                continue
            if event_id in self._first:
                again.append(row)
            else:
                self._first[event_id] = row
                self._fates.days[row] = day = _day_of(id_day(event_id))
                by_day[day].append(event_id)
        there: dict[str, dict[str, Any]] = {}
        for day, ids in sorted(by_day.items()):
            there |= self._earlier.events(self._number, day, ids)
        again += (self._first[i] for i in there)
        if again:
            self._settle_again(again, there)

    def _settle_again(self, again: list[int], there: dict[str, dict[str, Any]]) -> None:
        """Tell a re-emitted event, which is dropped, from another one under its id, which is kept for a look."""
        needed = sorted({*again, *(self._first[self._ids[row]] for row in again)})
        said = dict(zip(needed, payloads(self._table.take(needed)), strict=True))
        for row in again:
            event_id = self._ids[row]
            self._fates.days.pop(row, None)
            if said[row] == there.get(event_id, said[self._first[event_id]]):
                self._fates.duplicate.add(row)
            else:
                self._fates.quarantined[row] = Reason.CONFLICT

    def settle_losses(self) -> None:
        """Drop losses of calls whose last event is there, and note last events of calls that stand as lost."""
        kinds: list[str] = self._table.column("kind").to_pylist()
        losses: dict[str, dict[str, int]] = defaultdict(dict)
        ends: dict[str, dict[str, int]] = defaultdict(dict)
        for row, day in self._fates.days.items():
            (losses if kinds[row] == UsageKind.LOST else ends)[day][self._ids[row]] = row
        for day in sorted({*losses, *ends}):
            self._supersede(day, losses[day], ends[day])
            standing = set(self._earlier.minted_with(self._number, day, ends[day], lost=True))
            moments = {i[:MILLISECOND] for i in standing}
            found = (row for i, row in ends[day].items() if i[:MILLISECOND] in moments and lost_event_id(i) in standing)
            self._fates.revives.update(found)

    def _supersede(self, day: str, losses: dict[str, int], ends: dict[str, int]) -> None:
        if not losses:
            return
        moments = {i[:MILLISECOND] for i in losses}
        here = [i for i in ends if i[:MILLISECOND] in moments]
        for event_id in here + self._earlier.minted_with(self._number, day, losses):
            if (row := losses.get(lost_event_id(event_id))) is not None:
                self._fates.superseded.add(row)
                self._fates.days.pop(row, None)
