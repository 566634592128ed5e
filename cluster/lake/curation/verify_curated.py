"""Checking plans and what was made of them, by carrying every plan out again: whatever differs is named, to the row.

Whoever rewrites raw segments, plans and all that follows from them alike is not seen here: against that stand signed
checkpoints outside of the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from cluster.errors import IntegrityError, NotFoundError
from cluster.journal.fact import Stream
from cluster.lake.curation import rows_file
from cluster.lake.curation.as_replayed import AsReplayed
from cluster.lake.curation.compare import compare
from cluster.lake.curation.curator import compute
from cluster.lake.curation.document import digest
from cluster.lake.curation.done import CuratedObject, Done
from cluster.lake.curation.keys import (
    DONE_PREFIX,
    EVENTS_PREFIX,
    PLAN_PREFIX,
    REFUSED_PREFIX,
    done_key,
    plan_key,
    plan_of,
)
from cluster.lake.curation.outcome import Outcome, to_parquet
from cluster.lake.curation.plan import Plan
from cluster.lake.curation.seen import Seen
from cluster.lake.layout import parse_segment_key, raw_prefix
from cluster.lake.row_digest import row_digest
from cluster.lake.verify import Finding
from cluster.storage.object_store import ObjectStore

# How often to look again when plans are carried out while it looks.
SNAPSHOTS: Final = 10


def verify_curated(store: ObjectStore) -> list[Finding]:
    """Return what is wrong with plans, events and quarantine, and raw segments that plans miss; an empty list when nothing is.

    Holds one plan's rows in memory. A plan that is not done yet is no fault, nor is half of its objects. Raises StorageError
    when the store cannot be read.
    """
    return list(_Verifying(store).findings())


class _Verifying:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._right = AsReplayed(store)
        self._seen = Seen(self._right)
        self._written: dict[int, list[str]] = defaultdict(list)
        self._done: set[int] = set()
        self._plan_numbers: set[int] = set()

    def findings(self) -> Iterator[Finding]:
        """Yield all that is wrong, in the order of plans."""
        yield from self._foreign(self._snapshot())
        last = max(self._plan_numbers | self._done, default=0)
        yield from self._plans(last)
        # The plan after the last that is done may be under way.
        open_plan = max(self._done, default=0) + 1
        for number in range(1, min(last, open_plan) + 1):
            yield from self._replay(number)
        for number, keys in sorted(self._written.items()):
            if not 1 <= number <= min(last, open_plan):
                yield from (Finding(key, None, f"was added: plan {number} is not carried out, or is none") for key in keys)

    def _snapshot(self) -> list[str]:
        """Take in which keys there are at one moment, though others may curate meanwhile; returns those that are none of ours."""
        for _ in range(SNAPSHOTS):
            self._done, foreign = self._numbers(DONE_PREFIX)
            self._written.clear()
            for prefix in (EVENTS_PREFIX, REFUSED_PREFIX):
                for info in self._store.list(prefix):
                    if (number := plan_of(info.key)) is None:
                        foreign.append(info.key)
                    else:
                        self._written[number].append(info.key)
            self._plan_numbers, more = self._numbers(PLAN_PREFIX)
            if self._numbers(DONE_PREFIX)[0] == self._done:
                break
        raw = (info.key for info in self._store.list(raw_prefix(Stream.USAGE)))
        return [*foreign, *more, *(key for key in raw if parse_segment_key(key) is None)]

    def _numbers(self, prefix: str) -> tuple[set[int], list[str]]:
        """Return the plans that have a key under a prefix, and the keys that are of no plan."""
        keys = [info.key for info in self._store.list(prefix)]
        return {n for key in keys if (n := plan_of(key)) is not None}, [key for key in keys if plan_of(key) is None]

    def _foreign(self, keys: list[str]) -> Iterator[Finding]:
        return (Finding(key, None, "was added: it is no object of the lake") for key in keys)

    def _plans(self, last: int) -> Iterator[Finding]:
        """Check that each plan is there, as the next one says, and that no segment is in two."""
        taken: dict[tuple[str, int, int], int] = {}
        before: bytes | None = b""
        for number in range(1, last + 1):
            try:
                data = self._store.get(plan_key(number))
                plan = Plan.from_bytes(number, data)
            except NotFoundError:
                yield Finding(plan_key(number), None, "is missing, and what came after it is there")
                before = None
                continue
            except IntegrityError as e:
                yield _what(plan_key(number), e)
                before = None
                continue
            if before is not None and plan.previous_sha256 != (digest(before) if before else ""):
                where = plan_key(number - 1) if number > 1 else plan_key(number)
                yield Finding(where, None, f"was edited: plan {number} was made after another one")
            before = data
            for segment in plan.segments:
                name = (segment.writer, segment.epoch, segment.seq)
                if (other := taken.setdefault(name, number)) != number:
                    yield Finding(plan_key(number), None, f"takes in {segment.key}, which plan {other} has")
                if self._store.head(segment.key) is None:
                    yield Finding(segment.key, None, f"is missing: plan {number} took in its {segment.rows} rows")

    def _replay(self, number: int) -> Iterator[Finding]:
        """Carry a plan out again, and compare what it made."""
        try:
            result = compute(self._right, number, self._seen)
        except NotFoundError:  # the plan itself, which is named already
            return
        except IntegrityError as e:
            yield Finding(plan_key(number), None, f"cannot be carried out again: {e.detail}")
            yield from self._as_said(number)
            return
        is_done = number in self._done
        if is_done:
            yield from self._end(result.done)
        elif any(done > number for done in self._done):
            yield Finding(done_key(number), None, "is missing, and what came after it is there")
            is_done = True
        yield from self._objects(result, complete=is_done)

    def _end(self, done: Done) -> Iterator[Finding]:
        key = done_key(done.number)
        try:
            found = Done.from_bytes(done.number, self._store.get(key))
        except IntegrityError as e:
            yield _what(key, e)
            return
        if found.plan_sha256 != done.plan_sha256:
            yield Finding(plan_key(done.number), None, f"was edited, or {key} was: another plan was carried out")
        elif found != done:
            yield Finding(key, None, "was edited: it does not say what follows from its plan")

    def _objects(self, result: Outcome, *, complete: bool) -> Iterator[Finding]:
        number = result.done.number
        there = set(self._written[number])
        for described, table in result.tables:
            if described.key not in there:
                if complete:
                    yield Finding(described.key, None, f"is missing, with its {described.rows} rows")
                    self._right.put_right(described.key, to_parquet(number, described, table))
                continue
            try:
                found = rows_file.read_rows(described.key, self._store.get(described.key))
            except IntegrityError as e:
                yield _what(described.key, e)
                self._right.put_right(described.key, to_parquet(number, described, table))
                continue
            if row_digest(found) != described.row_digest:
                yield from compare(described.key, table, found)
                self._right.put_right(described.key, to_parquet(number, described, table))
        yield from self._extra(number, {described.key for described, _ in result.tables})

    def _as_said(self, number: int) -> Iterator[Finding]:
        """Compare objects with what their plan's end says of them: all that is left when the raw rows are not."""
        if number not in self._done:
            return
        try:
            done = Done.from_bytes(number, self._store.get(done_key(number)))
        except IntegrityError as e:
            yield _what(done_key(number), e)
            return
        for described in done.objects:
            yield from self._as_described(described)
        yield from self._extra(number, {described.key for described in done.objects})

    def _as_described(self, described: CuratedObject) -> Iterator[Finding]:
        try:
            found = rows_file.read_rows(described.key, self._store.get(described.key))
        except NotFoundError:
            yield Finding(described.key, None, f"is missing, with its {described.rows} rows")
        except IntegrityError as e:
            yield _what(described.key, e)
        else:
            if row_digest(found) != described.row_digest:
                yield Finding(described.key, None, "its rows are not those that were written: their digest differs")

    def _extra(self, number: int, expected: set[str]) -> Iterator[Finding]:
        for key in sorted(set(self._written[number]) - expected):
            self._right.hide(key)
            yield Finding(key, None, f"was added: plan {number} makes no such object")


def _what(key: str, error: IntegrityError) -> Finding:
    return Finding(key, None, error.detail.removeprefix(f"{key} "))
