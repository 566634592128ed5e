"""The planner: which raw segments no plan has, and the next plan of them. Any number may plan at once; one of them wins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

import pyarrow as pa

from cluster.clock import Clock
from cluster.errors import IntegrityError, NotFoundError
from cluster.journal.fact import Stream
from cluster.lake.curation.create_once import create_document
from cluster.lake.curation.document import digest
from cluster.lake.curation.keys import plan_key
from cluster.lake.curation.plan import Plan, PlannedSegment
from cluster.lake.curation.ranges import Ranges
from cluster.lake.curation.raw_segment import all_columns, as_columns, read_segment
from cluster.lake.layout import parse_segment_key, raw_prefix
from cluster.storage.object_store import ObjectStore, PutOutcome

# A plan's rows are held in memory, with what they become: about 400 MB.
MAX_PLAN_ROWS: Final = 250_000


class Known(Protocol):
    """Who can be billed, and at which price. Asked once a plan, which pins the answer; what it raises ends the step."""

    def unknown_tenants(self, tenants: Collection[str]) -> set[str]:
        """Return those of the tenants that there never were."""
        ...

    def unpriced_models(self, models: Collection[str]) -> set[str]:
        """Return those of the models that have no price."""
        ...


class AllKnown:
    """Takes every tenant and model for known: for a lake whose prices are not set yet."""

    def unknown_tenants(self, tenants: Collection[str]) -> set[str]:
        """Return none."""
        return set()

    def unpriced_models(self, models: Collection[str]) -> set[str]:
        """Return none."""
        return set()


@dataclass(slots=True)
class Candidates:
    """Segments for the next plan, and those that can't be planned, each with the reason: they wait, and are told of."""

    segments: list[PlannedSegment] = field(default_factory=list)
    # The segments' rows, by their digests.
    rows: dict[str, pa.Table] = field(default_factory=dict)
    tenants: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)


class Planner:
    """Knows the plans that there are, and makes the next one."""

    def __init__(self, store: ObjectStore, clock: Clock, known: Known, max_rows: int = MAX_PLAN_ROWS) -> None:
        """Plan over `store`; a plan has at most `max_rows` rows, or one segment."""
        self._store = store
        self._clock = clock
        self._known = known
        self._max_rows = max_rows
        self._planned: dict[tuple[str, int], Ranges] = defaultdict(Ranges)
        self._last_sha256 = ""
        # The number of the last plan that is known here.
        self.last = 0
        # The rows of the last plan that was made here, by their digests: read and checked once, not twice.
        self.fresh: dict[str, pa.Table] = {}
        # Segments that could not be planned the last time, each with the reason.
        self.unreadable: dict[str, str] = {}

    def catch_up(self) -> None:
        """Read the plans that others made. They have no gaps, so the first that is not there is the next."""
        while True:
            try:
                data = self._store.get(plan_key(self.last + 1))
            except NotFoundError:
                return
            self._take(Plan.from_bytes(self.last + 1, data), data)

    def plan_next(self) -> Plan | None:
        """Create the plan of what is not planned; returns None when nothing is, or when somebody else made this plan.

        Raises StorageError when it is not known whether it was created: the next `catch_up` finds that out.
        """
        self.fresh = {}
        found = self._candidates()
        self.unreadable = found.unreadable
        if not found.segments:
            return None
        plan = Plan(
            number=self.last + 1,
            previous_sha256=self._last_sha256,
            planned_us=self._clock.now_us(),
            columns=all_columns(),
            segments=tuple(found.segments),
            unknown_tenants=tuple(sorted(self._known.unknown_tenants(found.tenants))),
            unpriced_models=tuple(sorted(self._known.unpriced_models(found.models))),
        )
        data = plan.to_bytes()
        if create_document(self._store, plan_key(plan.number), data) is PutOutcome.EXISTS:
            return None
        self._take(plan, data)
        self.fresh = found.rows
        return plan

    def _take(self, plan: Plan, data: bytes) -> None:
        for segment in plan.segments:
            self._planned[segment.writer, segment.epoch].add(segment.seq)
        self.last = plan.number
        self._last_sha256 = digest(data)

    def _candidates(self) -> Candidates:
        found, rows = Candidates(), 0
        for info in self._store.list(raw_prefix(Stream.USAGE)):
            named = parse_segment_key(info.key)
            if named is None or named[3] in self._planned[named[1], named[2]]:
                continue
            try:
                segment, table = read_segment(info.key, self._store.get(info.key))
                table = as_columns(info.key, table, all_columns())
            except IntegrityError as e:
                found.unreadable[info.key] = e.detail
                continue
            rows += segment.rows
            if found.segments and rows > self._max_rows:
                break
            found.segments.append(segment)
            found.rows[segment.row_digest] = table
            found.tenants |= _names(table, "tenant_id")
            found.models |= _names(table, "model")
        return found


def _names(table: pa.Table, column: str) -> set[str]:
    return {name for name in table.column(column).unique().to_pylist() if name is not None}
