"""A plan's outcome as objects and figures: a pure function of the plan, its rows and what earlier plans curated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cluster.clock import utc
from cluster.journal.usage_event import UsageKind
from cluster.lake.curation import rows_file
from cluster.lake.curation.curate import Decided, Earlier, Fates, decide
from cluster.lake.curation.document import digest
from cluster.lake.curation.done import CuratedObject, Done
from cluster.lake.curation.keys import events_key, refused_key
from cluster.lake.curation.plan import Plan
from cluster.lake.row_digest import row_digest
from cluster.lake.seal import META

HOUR_US = 3_600_000_000
# The year 9999 ends before this hour; a clock that is beyond it, or before 1970, has no hour.
_LAST_HOUR = 70_389_528
# Kinds that have a figure of their own.
_KINDS = {UsageKind.FINAL.value: "settled", UsageKind.LOST.value: "lost"}
_ORDER = [("tenant_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The tables that a plan writes, each with what is said of it, and what says that the plan is done."""

    tables: list[tuple[CuratedObject, pa.Table]]
    done: Done


def outcome(plan: Plan, segments: Sequence[pa.Table], earlier: Earlier) -> Outcome:
    """Return what `plan` makes of its segments' rows, which are given in the plan's order with the plan's columns."""
    rows = pa.concat_tables(segments).combine_chunks()
    decided = decide(rows, plan, earlier)
    fates = decided.fates
    tables = [*_events(plan, rows, decided)]
    if fates.quarantined:
        tables.append(_described(refused_key(plan.number), _quarantine(plan, rows, fates)))
    reasons = Counter(reason.value for reason in fates.quarantined.values())
    objects = tuple(described for described, _ in tables)
    done = Done(plan.number, digest(plan.to_bytes()), objects, _hours(rows, fates), dict(reasons))
    return Outcome(tables, done)


def to_parquet(plan: int, described: CuratedObject, table: pa.Table) -> bytes:
    """Return a table as the object's bytes, with what is needed to check it alone."""
    meta = {
        "format": "1",
        "stream": "usage",
        "plan": str(plan),
        "rows": str(described.rows),
        "row_digest": described.row_digest,
    }
    return rows_file.write_rows(table.replace_schema_metadata({META + k: v for k, v in meta.items()}))


def _events(plan: Plan, rows: pa.Table, decided: Decided) -> Iterable[tuple[CuratedObject, pa.Table]]:
    for part, (day, mask) in enumerate(decided.curated(), start=1):
        # Sorted by what makes a bill and a day's question cheap; the id makes it one order.
        yield _described(events_key(plan.number, part, day), rows.filter(mask).sort_by(_ORDER))


def _quarantine(plan: Plan, rows: pa.Table, fates: Fates) -> pa.Table:
    where = [(segment.key, row) for segment in plan.segments for row in range(segment.rows)]
    at = sorted(fates.quarantined)
    table = rows.take(at)
    table = table.append_column("reason", pa.array([fates.quarantined[row].value for row in at], pa.string()))
    table = table.append_column("segment", pa.array([where[row][0] for row in at], pa.string()))
    return table.append_column("segment_row", pa.array([where[row][1] for row in at], pa.int64()))


def _described(key: str, table: pa.Table) -> tuple[CuratedObject, pa.Table]:
    table = table.combine_chunks()
    times = pc.min_max(pc.cast(table.column("event_time"), pa.int64())).as_py()
    return CuratedObject(key, table.num_rows, row_digest(table), times["min"] or 0, times["max"] or 0), table


def _hours(rows: pa.Table, fates: Fates) -> dict[str, dict[str, int]]:
    times = pc.cast(rows.column("event_time"), pa.int64())
    fate = ["curated"] * rows.num_rows
    for name, odd in (("quarantined", fates.quarantined), ("duplicate", fates.duplicate), ("superseded", fates.superseded)):
        for row in odd:
            fate[row] = name
    # Half-open UTC hours; before 1970 a quotient would round up, into another hour.
    hour = pc.if_else(pc.less(times, 0), None, pc.divide(times, HOUR_US))
    grouped = pa.table({"hour": hour, "fate": fate, "kind": rows.column("kind")}).group_by(["hour", "fate", "kind"])
    counted: Counter[tuple[str, str]] = Counter()
    for group in grouped.aggregate([([], "count_all")]).to_pylist():
        name, count = _name(group["hour"]), group["count_all"]
        counted[name, "raw"] += count
        counted[name, group["fate"]] += count
        if group["fate"] == "curated" and group["kind"] in _KINDS:
            counted[name, _KINDS[group["kind"]]] += count
    for start in pc.cast(rows.column("start_time"), pa.int64()).take(pa.array(sorted(fates.revives), pa.int64())).to_pylist():
        # A loss has the time at which its call began.
        counted[_name(start // HOUR_US), "revived"] += 1
    hours: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, figure), count in counted.items():
        hours[name][figure] = count
    return dict(hours)


def _name(hour: int | None) -> str:
    return f"{utc(hour * HOUR_US):%Y-%m-%dT%H}" if hour is not None and 0 <= hour < _LAST_HOUR else "none"
