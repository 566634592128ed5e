"""Naming the rows in which an object differs from what it must hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.lake.verify import Finding


def compare(key: str, expected: pa.Table, found: pa.Table) -> Iterator[Finding]:
    """Yield how the rows found under `key` differ from those expected: missing, added, edited, or in another order."""
    if found.column_names != expected.column_names or found.schema.types != expected.schema.types:
        yield Finding(key, None, "does not have the columns that were written")
        return
    named = ["segment", "segment_row"] if "segment_row" in expected.column_names else ["event_id"]
    wanted = {tuple(row[n] for n in named): row for row in _plain(expected)}
    seen: set[tuple[Any, ...]] = set()
    said = False
    for at, row in enumerate(_plain(found)):
        name = tuple(row[n] for n in named)
        problem = ""
        if name not in wanted:
            problem = f"({_words(name)}) was added: it follows from no raw row"
        elif name in seen:
            problem = f"({_words(name)}) is there a second time"
        elif changed := [column for column, value in wanted[name].items() if row[column] != value]:
            problem = f"({_words(name)}) was edited: {', '.join(changed)}"
        seen.add(name)
        if problem:
            said = True
            yield Finding(key, at, problem)
    for name in wanted.keys() - seen:
        said = True
        yield Finding(key, None, f"its row {_words(name)} is missing")
    if not said:
        yield Finding(key, None, "its rows are not in the order in which they were written")


def _plain(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows with times as integers: a time that a clock without sense gave has no other form."""
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(at, field.name, pc.cast(table.column(at), pa.int64()))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _words(name: tuple[Any, ...]) -> str:
    return " row ".join(map(str, name))
