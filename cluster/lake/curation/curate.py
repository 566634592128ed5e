"""What becomes of a plan's raw rows: curated once, or quarantined with a reason, or dropped and counted. No I/O but `Earlier`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cluster.clock import utc
from cluster.journal.usage_event import UsageKind, lost_event_id
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.screen import Reason, screen
from cluster.lake.curation.seen import minted_as, payloads

DAY_US: Final = 86_400_000_000


class Earlier(Protocol):
    """What plans before a given one curated; see `Seen`."""

    def events(self, before: int, day: str, ids: pa.Array) -> dict[str, dict[str, Any]]:
        """Return what is said of those of `ids` that are there."""
        ...

    def minted_with(self, before: int, day: str, ids: pa.Array, *, lost: bool = False) -> list[str]:
        """Return the ids that are there and were minted in the same millisecond as any of `ids`."""
        ...


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of each row, by its position. Rows that are in none of these are curated: nearly all."""

    quarantined: dict[int, Reason]
    duplicate: set[int] = field(default_factory=set)
    # Losses of calls whose last event is there after all.
    superseded: set[int] = field(default_factory=set)
    # Curated rows whose call stands as lost in what earlier plans curated.
    revives: set[int] = field(default_factory=set)

    def dropped(self) -> set[int]:
        """Return the rows that are not curated."""
        return {*self.quarantined, *self.duplicate, *self.superseded}


@dataclass(frozen=True, slots=True)
class Decided:
    """The rows' fates, and the UTC day of each row's id in days since 1970, empty where it has none."""

    fates: Fates
    days: pa.Array

    def curated(self) -> Iterator[tuple[str, Any]]:
        """Yield each day, YYYY-MM-DD in rising order, with the mask of the rows that are curated on it."""
        kept = without(pc.is_valid(self.days), self.fates.dropped())
        for day in sorted(pc.unique(self.days.filter(kept)).to_pylist()):
            yield day_name(day), pc.and_(kept, pc.equal(self.days, day))


def day_name(days: int) -> str:
    """Return days since 1970 as YYYY-MM-DD."""
    return f"{utc(days * DAY_US):%Y-%m-%d}"


def without(mask: pa.Array, rows: set[int]) -> pa.Array:
    """Return a mask of rows without some of them."""
    if not rows:
        return mask
    return pc.and_(mask, pc.invert(pc.is_in(pa.array(range(len(mask))), value_set=pa.array(sorted(rows)))))


def decide(table: pa.Table, plan: Plan, earlier: Earlier) -> Decided:
    """Return the fate of each row of a plan, whose rows are in the plan's order: of equal ids, the first is the event."""
    screened = screen(table, plan)
    decided = Decided(Fates(screened.reasons), pc.divide(screened.minted_us, DAY_US))
    deciding = _Deciding(table.combine_chunks(), plan.number, earlier, decided)
    deciding.settle_ids()
    deciding.settle_losses()
    return decided


class _Deciding:
    """The rows of one plan on their way to their fates. Columns at a time; single rows only where something is odd."""

    def __init__(self, table: pa.Table, number: int, earlier: Earlier, decided: Decided) -> None:
        self._table = table
        self._number = number
        self._earlier = earlier
        self._fates = decided.fates
        self._decided = decided
        self._ids: pa.Array = pa.concat_arrays(table.column("event_id").chunks)

    def settle_ids(self) -> None:
        """Find the rows whose id was there before, in earlier plans or in this one."""
        there: dict[str, dict[str, Any]] = {}
        distinct = True
        for day, mask in self._decided.curated():
            ids = self._ids.filter(mask)
            distinct = distinct and pc.count_distinct(ids).as_py() == len(ids)
            there |= self._earlier.events(self._number, day, ids)
        if there or not distinct:
            self._settle_again(there)

    def _settle_again(self, there: dict[str, dict[str, Any]]) -> None:
        """Tell a re-emitted event, which is dropped, from another one under its id, which is kept for a look."""
        first: dict[str, int] = {}
        again: list[int] = []
        ids: list[str] = self._ids.to_pylist()
        for row, event_id in enumerate(ids):
            if row not in self._fates.quarantined and (first.setdefault(event_id, row) != row or event_id in there):
                again.append(row)
        needed = sorted({*again, *(first[ids[row]] for row in again)})
        said = dict(zip(needed, payloads(self._table.take(needed)), strict=True))
        for row in again:
            if said[row] == there.get(ids[row], said[first[ids[row]]]):
                self._fates.duplicate.add(row)
            else:
                self._fates.quarantined[row] = Reason.CONFLICT

    def settle_losses(self) -> None:
        """Drop losses of calls whose last event is there, and note last events of calls that stand as lost."""
        lost = pc.fill_null(pc.equal(self._table.column("kind"), UsageKind.LOST.value), False).combine_chunks()
        for day, mask in self._decided.curated():
            losses, ends = pc.and_(mask, lost), pc.and_not(mask, lost)
            if pc.any(losses).as_py():
                self._supersede(day, losses, ends)
            standing = set(self._earlier.minted_with(self._number, day, self._ids.filter(ends), lost=True))
            if standing:
                near = self._rows(pc.and_(ends, minted_as(self._ids, pa.array(standing))))
                self._fates.revives.update(row for i, row in near.items() if lost_event_id(i) in standing)

    def _supersede(self, day: str, losses: pa.Array, ends: pa.Array) -> None:
        rows = self._rows(losses)
        ids = self._ids.filter(losses)
        near = self._rows(pc.and_(ends, minted_as(self._ids, ids)))
        for event_id in [*near, *self._earlier.minted_with(self._number, day, ids)]:
            if (row := rows.get(lost_event_id(event_id))) is not None:
                self._fates.superseded.add(row)

    def _rows(self, mask: pa.Array) -> dict[str, int]:
        """Return the positions of the rows of a mask by their ids."""
        return dict(zip(self._ids.filter(mask).to_pylist(), pc.indices_nonzero(mask).to_pylist(), strict=True))
