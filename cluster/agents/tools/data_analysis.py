"""Tables asked by SQL, described, grouped, correlated or fitted. Runs in a sandboxed child; see child.py.

SQLite of the standard library is used, not DuckDB: it starts in 3 ms where DuckDB takes 150, and tables that fit in a
tool call are small.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

MAX_ROWS = 50_000
MAX_RESULT_ROWS = 500
MAX_COLUMNS = 200

Row = dict[str, Any]
Value = int | float | str | None


def run(arguments: dict[str, Any], host: Any) -> dict[str, Any]:
    """Return what was asked: {"columns", "rows", "truncated"} for SQL and groups, {"columns": {name: statistics}} for describe,
    {"correlation": …} or {"trend": …} otherwise; raises ValueError that says what is wrong with the table or the question.
    """
    rows = _rows(arguments)
    operation = arguments.get("operation") or ("sql" if arguments.get("sql") else "describe")
    if operation == "sql":
        return _sql(rows, str(arguments.get("sql") or ""))
    if operation == "describe":
        return {"row_count": len(rows), "columns": {name: _describe(values) for name, values in _columns(rows).items()}}
    if operation == "group":
        return _group(rows, arguments)
    if operation == "correlation":
        return _correlation(rows, arguments)
    if operation == "trend":
        return _trend(rows, arguments)
    raise ValueError(f"There is no operation {operation!r}; use sql, describe, group, correlation or trend.")


def _rows(arguments: dict[str, Any]) -> list[Row]:
    rows, text = arguments.get("rows"), arguments.get("csv")
    if (rows is None) == (text is None):
        raise ValueError("Give the table either as rows (a list of objects) or as csv (text with a header line).")
    table = list(_from_csv(str(text))) if rows is None else [_plain_row(row, n) for n, row in enumerate(rows, 1)]
    if not table:
        raise ValueError("The table has no rows.")
    if len(table) > MAX_ROWS:
        raise ValueError(f"The table has {len(table)} rows; at most {MAX_ROWS} can be analysed in one call.")
    names = list(dict.fromkeys(name for row in table for name in row))
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"The table has {len(names)} columns; at most {MAX_COLUMNS} can be analysed in one call.")
    return [{name: row.get(name) for name in names} for row in table]


def _from_csv(text: str) -> Iterator[Row]:
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",;\t|")
    except csv.Error:
        dialect = "excel"
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")), dialect=dialect)
    if not reader.fieldnames or any(not (name or "").strip() for name in reader.fieldnames):
        raise ValueError("The first line of csv must name every column.")
    for row in reader:
        if None in row:
            raise ValueError(f"Line {reader.line_num} of csv has more values than the first line has names.")
        yield {name.strip(): _number(value) for name, value in row.items()}


def _plain_row(row: Any, number: int) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"Row {number} is not an object.")  # noqa: TRY004  # a ValueError is for the model
    for name, value in row.items():
        if not isinstance(value, int | float | str | None):
            raise ValueError(f"Row {number}, column {name!r}: only numbers, text and null can be analysed.")  # noqa: TRY004  # likewise
    return {str(name): _fits(value) for name, value in row.items()}


def _fits(value: Value) -> Value:
    """Return `value` as SQLite can hold it: truth as 1 or 0, and an integer beyond 64 bits as a float."""
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else float(value)
    return value


def _number(text: str | None) -> Value:
    if text is None or text.strip() == "":
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text) else number


def _columns(rows: list[Row]) -> dict[str, list[Value]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sql(rows: list[Row], sql: str) -> dict[str, Any]:
    if not sql.strip():
        raise ValueError("The operation sql needs a query in `sql`; the table is called data.")
    db = sqlite3.connect(":memory:", isolation_level=None)
    names = list(rows[0])
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    try:
        db.execute(f"CREATE TABLE data ({quoted})")
        marks = ", ".join("?" * len(names))
        db.execute("BEGIN")
        db.executemany(f"INSERT INTO data VALUES ({marks})", ([row[n] for n in names] for row in rows))  # noqa: S608  # only marks
        db.execute("COMMIT")
        for name, aggregate in (("median", _Median), ("stddev", _Stddev)):
            db.create_aggregate(name, 1, aggregate)  # type: ignore[arg-type]  # steps and finishes, as sqlite3 asks
        # After the load nothing may change, and no other file may be attached.
        db.execute("PRAGMA query_only = ON")
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        cursor = db.execute(sql)
        found = cursor.fetchmany(MAX_RESULT_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning) as e:
        raise ValueError(f"The query failed: {e}. The table is called data; its columns are: {', '.join(names)}.") from None
    if cursor.description is None:
        raise ValueError("The query returns no rows; ask with SELECT.")
    return {
        "columns": [d[0] for d in cursor.description],
        "rows": [[_json(v) for v in row] for row in found[:MAX_RESULT_ROWS]],
        "truncated": len(found) > MAX_RESULT_ROWS,
    }


class _Median:
    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, value: Value) -> None:
        if isinstance(value, int | float):
            self.values.append(value)

    def finalize(self) -> float | None:
        return quantile(sorted(self.values), 0.5) if self.values else None


class _Stddev(_Median):
    def finalize(self) -> float | None:
        return stddev(self.values)


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(values: list[Value]) -> dict[str, Any]:
    present = [v for v in values if v is not None]
    numbers = [v for v in present if isinstance(v, int | float)]
    about: dict[str, Any] = {"count": len(present), "missing": len(values) - len(present), "distinct": len(set(present))}
    if numbers and len(numbers) == len(present):
        about |= {"type": "number"} | statistics_of(numbers)
    elif present:
        counts: dict[str, int] = {}
        for value in present:
            counts[str(value)] = counts.get(str(value), 0) + 1
        top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
        about |= {"type": "text", "most_common": [{"value": v[:200], "count": n} for v, n in top]}
    return about


def statistics_of(numbers: list[int | float] | list[float] | list[int]) -> dict[str, float | None]:
    """Return sum, mean, sample standard deviation, extremes, and quartiles by linear interpolation (R's type 7)."""
    ordered = sorted(numbers)
    return {
        "sum": math.fsum(numbers),
        "mean": math.fsum(numbers) / len(numbers),
        "stddev": stddev(numbers),
        "min": ordered[0],
        "p25": quantile(ordered, 0.25),
        "median": quantile(ordered, 0.5),
        "p75": quantile(ordered, 0.75),
        "p95": quantile(ordered, 0.95),
        "max": ordered[-1],
    }


def stddev(numbers: list[Any]) -> float | None:
    """Return the sample standard deviation (n − 1), or None for fewer than two numbers."""
    if len(numbers) < 2:
        return None
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def quantile(ordered: list[Any], q: float) -> float:
    """Return the q-quantile of sorted numbers by linear interpolation between the two nearest (R's type 7)."""
    position = (len(ordered) - 1) * q
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (position - low))


def _column(rows: list[Row], arguments: dict[str, Any], key: str) -> str:
    name = arguments.get(key)
    if name not in rows[0]:
        raise ValueError(f"`{key}` must name a column; the columns are: {', '.join(rows[0])}.")
    return str(name)


def _group(rows: list[Row], arguments: dict[str, Any]) -> dict[str, Any]:
    by, of = _column(rows, arguments, "group_by"), _column(rows, arguments, "column")
    groups: dict[Value, list[int | float]] = {}
    for row in rows:
        if isinstance(row[of], int | float):
            groups.setdefault(row[by], []).append(row[of])
    if not groups:
        raise ValueError(f"The column {of!r} has no numbers.")
    ordered = sorted(groups.items(), key=lambda item: (item[0] is None, str(type(item[0])), item[0]))
    found = []
    for value, numbers in ordered[:MAX_RESULT_ROWS]:
        about = statistics_of(numbers)
        found.append([value, len(numbers), about["sum"], about["mean"], about["median"], about["min"], about["max"]])
    return {
        "columns": [by, "count", "sum", "mean", "median", "min", "max"],
        "rows": found,
        "truncated": len(ordered) > MAX_RESULT_ROWS,
    }


def _pairs(rows: list[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    pairs = [(row[x], row[y]) for row in rows if isinstance(row[x], int | float) and isinstance(row[y], int | float)]
    if len(pairs) < 2:
        raise ValueError(f"The columns {x!r} and {y!r} have fewer than two rows in which both are numbers.")
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def _correlation(rows: list[Row], arguments: dict[str, Any]) -> dict[str, Any]:
    x, y = _column(rows, arguments, "x"), _column(rows, arguments, "y")
    a, b = _pairs(rows, x, y)
    fit = least_squares(a, b)
    return {"correlation": fit["r"], "count": len(a), "x": x, "y": y}


def _trend(rows: list[Row], arguments: dict[str, Any]) -> dict[str, Any]:
    y = _column(rows, arguments, "y")
    if arguments.get("x") is None:
        b = [float(row[y]) for row in rows if isinstance(row[y], int | float)]
        a = [float(n) for n in range(len(b))]
        if len(b) < 2:
            raise ValueError(f"The column {y!r} has fewer than two numbers.")
    else:
        a, b = _pairs(rows, _column(rows, arguments, "x"), y)
    return {"trend": least_squares(a, b), "count": len(a), "x": arguments.get("x") or "row number from 0", "y": y}


def least_squares(a: list[float], b: list[float]) -> dict[str, float | None]:
    """Return slope, intercept and Pearson's r of the line b = slope·a + intercept; None where a (or b, for r) is constant."""
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    aa = math.fsum((x - mean_a) ** 2 for x in a)
    bb = math.fsum((y - mean_b) ** 2 for y in b)
    ab = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    if aa == 0:
        return {"slope": None, "intercept": None, "r": None}
    r = max(-1.0, min(1.0, ab / math.sqrt(aa * bb))) if bb else None
    return {"slope": ab / aa, "intercept": mean_b - ab / aa * mean_a, "r": r}
