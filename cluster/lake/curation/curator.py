"""One step of curation: carry out the plans that wait, and make and carry out the next. Anyone may, any number at once.

Whatever is killed and when, the keys are created once: a plan says for good what it takes in, and its outcome is the same
rows for everybody. Somebody who sleeps through the work of others wakes to keys that are taken, by what he would have written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from cluster.clock import Clock
from cluster.errors import IntegrityError, NotFoundError
from cluster.lake.curation.create_once import create_equal, create_rows
from cluster.lake.curation.done import Done
from cluster.lake.curation.keys import DONE_PREFIX, done_key, plan_key, plan_of
from cluster.lake.curation.outcome import Outcome, outcome, to_parquet
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.planner import MAX_PLAN_ROWS, AllKnown, Known, Planner
from cluster.lake.curation.raw_segment import as_columns, read_segment
from cluster.lake.curation.rows_file import NAMES_ALL
from cluster.lake.curation.seen import Seen
from cluster.storage.object_store import ObjectStore
from cluster.storage.probe import probe_create_only


@dataclass(slots=True)
class CurationReport:
    """What one step did: plans made and carried out, and what became of their rows."""

    planned: int = 0
    executed: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    # Rows in quarantine by reason.
    reasons: dict[str, int] = field(default_factory=dict)
    # Raw segments that can't be planned, each with the reason. They wait; nothing of them is lost, and nothing billed.
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, done: Done) -> None:
        """Count what a plan did."""
        self.executed += 1
        for counts, more in ((self.rows, done.totals()), (self.reasons, done.reasons)):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count


class Curator:
    """Curates one lake. Holds nothing that is not in the lake: another goes on from what a killed one had written."""

    def __init__(
        self, store: ObjectStore, *, clock: Clock, known: Known | None = None, max_plan_rows: int = MAX_PLAN_ROWS
    ) -> None:
        """Curate the usage of `store`; `known` says who can be billed and at which price, nothing: everybody."""
        self._store = store
        self._planner = Planner(store, clock, known or AllKnown(), max_plan_rows)
        self._seen = Seen(store)
        self._done: int | None = None
        self._probed = False

    def step(self, plans: int = sys.maxsize) -> CurationReport:
        """Carry out what is planned, then plan and carry out until all that is sealed is curated, or `plans` were made.

        Raises StorageError when the store is away: a later step goes on. Raises IntegrityError when something in the lake is
        not what was written: nothing behind it is curated until an operator has looked.
        """
        if not self._probed:
            probe_create_only(self._store)
            self._probed = True
        report = CurationReport()
        self._carry_out(report)
        while report.planned < plans and self._planner.plan_next() is not None:
            report.planned += 1
            self._carry_out(report)
        # Another's plan, made meanwhile, is carried out by us or by him: the rows are the same.
        self._carry_out(report)
        report.unreadable = self._planner.unreadable
        return report

    def _carry_out(self, report: CurationReport) -> None:
        self._planner.catch_up()
        if self._done is None:
            self._done = self._first_gap()
        while self._done < self._planner.last:
            done = execute(self._store, self._done + 1, self._seen, self._planner.fresh)
            self._done += 1
            if done is not None:
                report.add(done)

    def _first_gap(self) -> int:
        """Return how many plans are done, counted from the first without a gap."""
        last = 0
        for info in self._store.list(DONE_PREFIX):
            if plan_of(info.key) != last + 1:
                break
            last += 1
        return last


def compute(store: ObjectStore, number: int, seen: Seen, fresh: Mapping[str, pa.Table] = MappingProxyType({})) -> Outcome:
    """Return the outcome of a plan all plans before which are done; writes nothing. Raises IntegrityError.

    `fresh` are rows that were just read and checked, by their digests.
    """
    plan = Plan.from_bytes(number, store.get(plan_key(number)))
    return outcome(plan, [_planned_rows(store, plan, at, fresh) for at in range(len(plan.segments))], seen)


def execute(store: ObjectStore, number: int, seen: Seen, fresh: Mapping[str, pa.Table] = MappingProxyType({})) -> Done | None:
    """Carry out a plan all plans before which are done; returns what it did, or None when it was done before."""
    if store.head(done_key(number)) is not None:
        return None
    result = compute(store, number, seen, fresh)
    for described, table in result.tables:
        create_rows(store, described, to_parquet(number, described, table))
    create_equal(store, done_key(number), result.done.to_bytes())
    return result.done


def _planned_rows(store: ObjectStore, plan: Plan, at: int, fresh: Mapping[str, pa.Table]) -> pa.Table:
    planned = plan.segments[at]
    if planned.row_digest in fresh:
        return as_columns(planned.key, fresh[planned.row_digest], plan.columns)
    try:
        found, table = read_segment(planned.key, store.get(planned.key))
    except NotFoundError:
        raise IntegrityError(f"{planned.key} is in plan {plan.number} and not in the lake.", hint=_HINT) from None
    if found.row_digest != planned.row_digest:
        raise IntegrityError(f"{planned.key} holds other rows than when plan {plan.number} took it in.", hint=_HINT)
    return as_columns(planned.key, table, plan.columns)


_HINT: Final = f"Nothing more is curated until it is looked at: {NAMES_ALL}"
