"""Which raw rows can't be billed, and why: a pure function of the rows and of what the plan pinned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cluster.journal.usage_event import UsageEvent
from cluster.lake.curation.plan import Plan
from cluster.lake.schema import SEALED_COLUMNS


class Reason(StrEnum):
    """Why a row is in quarantine; the first that fits, in this order."""

    # A column that every event fills is empty.
    INCOMPLETE = "incomplete"
    # Its event_id is no UUIDv7, so that nobody could tell whether it is here twice.
    BAD_ID = "bad_id"
    NEGATIVE = "negative"
    OVERFLOW = "overflow"
    # It is from later than the shipper's or the planner's clock, by more than the tolerance.
    CLOCK_AHEAD = "clock_ahead"
    # It ended before it began, or before its id was minted, by more than the tolerance.
    CLOCK_BACK = "clock_back"
    UNKNOWN_TENANT = "unknown_tenant"
    UNKNOWN_PRICE = "unknown_price"
    # Its event_id is that of another event, which came first.
    CONFLICT = "conflict"


TOLERANCE_US: Final = 5 * 60 * 1_000_000
# The largest number that every reader holds exactly, JavaScript and pandas too: 285 years of CPU time in microseconds.
MAX_QUANTITY: Final = 2**53 - 1

# As everybody writes it, in lower case: in two forms one id would be two.
_UUID7: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
# Columns that a later release appends are not among them: they may be empty.
_FILLED: Final = [f.name for f in fields(UsageEvent) if f.default is not None or f.default is MISSING] + list(SEALED_COLUMNS)
_NO_QUANTITY: Final = {"schema_version", *SEALED_COLUMNS}


@dataclass(frozen=True, slots=True)
class Screened:
    """Why rows go into quarantine, by their position; and when each row's id was minted, empty where it is no UUIDv7."""

    reasons: dict[int, Reason]
    # In microseconds since 1970 UTC.
    minted_us: pa.Array


def screen(table: pa.Table, plan: Plan) -> Screened:
    """Return which rows can't be billed by what they say themselves."""
    minted_us = _minted_us(table.column("event_id"))
    reasons: dict[int, Reason] = {}
    for reason, wrong in _checks(table, plan, minted_us):
        # Of a column that is empty nothing can be said, but that it is empty.
        for row in pc.indices_nonzero(pc.fill_null(wrong, False)).to_pylist():
            reasons.setdefault(row, reason)
    return Screened(reasons, minted_us)


def _minted_us(ids: pa.ChunkedArray) -> pa.Array:
    sound = pc.if_else(pc.match_substring_regex(ids, _UUID7), ids, None)
    return pa.array([int(i[:8] + i[9:13], 16) * 1_000 if i else None for i in sound.to_pylist()], pa.int64())


def _checks(table: pa.Table, plan: Plan, id_time: pa.Array) -> Iterator[tuple[Reason, Any]]:
    """Yield masks of rows, in order of reasons; none for a column in which nothing is wrong, as nearly always."""
    for name in _FILLED:
        if table.column(name).null_count:
            yield Reason.INCOMPLETE, pc.is_null(table.column(name))
    if id_time.null_count:
        yield Reason.BAD_ID, pc.is_null(id_time)
    quantities = [table.column(f.name) for f in table.schema if pa.types.is_integer(f.type) and f.name not in _NO_QUANTITY]
    ends = [(q, pc.min_max(q)) for q in quantities]
    yield from ((Reason.NEGATIVE, pc.less(q, 0)) for q, end in ends if (end["min"].as_py() or 0) < 0)
    yield from ((Reason.OVERFLOW, pc.greater(q, MAX_QUANTITY)) for q, end in ends if (end["max"].as_py() or 0) > MAX_QUANTITY)
    event, start, ingest = (pc.cast(table.column(n), pa.int64()) for n in ("event_time", "start_time", "ingest_time"))
    latest = pc.add(pc.min_element_wise(ingest, plan.planned_us), TOLERANCE_US)
    yield Reason.CLOCK_AHEAD, pc.greater(pc.max_element_wise(event, start, id_time), latest)
    yield Reason.CLOCK_BACK, pc.less(pc.add(event, TOLERANCE_US), pc.max_element_wise(start, id_time))
    for reason, column, names in (
        (Reason.UNKNOWN_TENANT, "tenant_id", plan.unknown_tenants),
        (Reason.UNKNOWN_PRICE, "model", plan.unpriced_models),
    ):
        if names:
            yield reason, pc.is_in(table.column(column), value_set=pa.array(names, pa.string()))
