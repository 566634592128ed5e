"""What earlier plans curated, by the day of the ids: the memory of curation, which is nothing but the lake itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cluster.journal.usage_event import UsageKind
from cluster.lake.curation import rows_file
from cluster.lake.curation.keys import events_prefix, plan_of
from cluster.lake.schema import SEALED_COLUMNS
from cluster.storage.object_store import ObjectStore

# About six million ids. What is more than that is read again by the next plan.
CACHE_BYTES: Final = 256 * 2**20
# What ids that were minted in the same millisecond begin with: 12 digits and a dash. A loss has that of its call.
_MILLISECOND: Final = 13


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids of an object's rows, and which of them are losses."""

    ids: pa.Array
    lost: pa.Array


class Seen:
    """Answers from the objects of plans before a given one. They are written once, so what was read stays true."""

    def __init__(self, store: ObjectStore, cache_bytes: int = CACHE_BYTES) -> None:
        """Read from `store`, and keep up to `cache_bytes` of ids."""
        self._store = store
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, _Ids] = OrderedDict()
        self._held = 0

    def events(self, before: int, day: str, ids: pa.Array) -> dict[str, dict[str, Any]]:
        """Return what is said of those of `ids` that plans before `before` curated; see `payloads`."""
        found: dict[str, dict[str, Any]] = {}
        for key, there in self._day(before, day):
            hits = pc.is_in(there.ids, value_set=ids)
            if pc.any(hits).as_py():
                for row in payloads(_read(key, self._store).filter(hits)):
                    found.setdefault(row["event_id"], row)
        return found

    def minted_with(self, before: int, day: str, ids: pa.Array, *, lost: bool = False) -> list[str]:
        """Return the ids that plans before `before` curated and that begin as any of `ids`; only losses when asked so."""
        found: list[str] = []
        for _, there in self._day(before, day):
            column = there.lost if lost else there.ids
            if len(column):
                found += column.filter(minted_as(column, ids)).to_pylist()
        return found

    def _day(self, before: int, day: str) -> Iterator[tuple[str, _Ids]]:
        for info in self._store.list(events_prefix(day)):
            number = plan_of(info.key)
            # What a later plan wrote may be half of it, and is not what this plan's other executors see.
            if number is not None and number < before:
                yield info.key, self._ids(info.key)

    def _ids(self, key: str) -> _Ids:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        table = _read(key, self._store, ["event_id", "kind"]).combine_chunks()
        ids = pa.concat_arrays(table.column("event_id").chunks) if table.num_rows else pa.array([], pa.string())
        there = _Ids(ids, ids.filter(pc.equal(table.column("kind"), UsageKind.LOST.value).combine_chunks()))
        self._cache[key] = there
        self._held += there.ids.nbytes
        while self._held > self._cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].ids.nbytes
        return there


def minted_as(ids: Any, others: Any) -> Any:
    """Return for each id whether it was minted in the same millisecond as any of `others`."""
    return pc.is_in(pc.utf8_slice_codeunits(ids, 0, _MILLISECOND), value_set=pc.utf8_slice_codeunits(others, 0, _MILLISECOND))


def payloads(table: pa.Table) -> list[dict[str, Any]]:
    """Return what rows say of their events: without what sealing added, times as integers, and no columns that are empty."""
    kept = table.drop_columns(list(SEALED_COLUMNS))
    for at, field in enumerate(kept.schema):
        if pa.types.is_timestamp(field.type):
            kept = kept.set_column(at, field.name, pc.cast(kept.column(at), pa.int64()))
    return [{name: value for name, value in row.items() if value is not None} for row in kept.to_pylist()]


def _read(key: str, store: ObjectStore, columns: list[str] | None = None) -> pa.Table:
    return rows_file.read_rows(key, store.get(key), columns)
