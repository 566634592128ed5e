"""Runs as rows: the schema, and each row as the run that it stands for."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from typing import Any, Final

import orjson

from cluster.errors import NotFoundError
from cluster.runs import sqlite_documents
from cluster.runs.run import Run, RunStatus

VERSION: Final = 1
# What changes often is apart from what is large, for SQLite writes a whole row again. `cancel` is 1 when a run is to be
# cancelled and 2 when it is to be removed then; `changed` is when, in the order of all changes.
SCHEMA: Final = (
    """CREATE TABLE runs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, kind TEXT NOT NULL,
  thread_id TEXT, status TEXT NOT NULL, open INTEGER NOT NULL, owner TEXT NOT NULL, cancel INTEGER NOT NULL DEFAULT 0,
  updated_us INTEGER NOT NULL, events INTEGER NOT NULL DEFAULT 0, event_bytes INTEGER NOT NULL DEFAULT 0,
  changed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX open_runs ON runs (owner, number) WHERE open = 1;
CREATE INDEX busy_threads ON runs (tenant, kind, thread_id, number) WHERE open = 1;
CREATE INDEX runs_of_tenant ON runs (tenant, kind, thread_id, number);
CREATE INDEX ended_runs ON runs (tenant, updated_us) WHERE open = 0;
CREATE INDEX changes ON runs (changed);
CREATE TABLE requests (number INTEGER PRIMARY KEY, json BLOB NOT NULL);
CREATE TABLE results (number INTEGER PRIMARY KEY, json BLOB NOT NULL);
CREATE TABLE events (number INTEGER NOT NULL, seq INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (number, seq)) WITHOUT ROWID;
CREATE TABLE deliveries (number INTEGER PRIMARY KEY, due_us INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0);
CREATE INDEX due_deliveries ON deliveries (due_us);
CREATE TABLE counter (value INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
"""
    + sqlite_documents.SCHEMA
)
# The fields of a run that its row has columns for, and those that its end brings; the others are its request.
_COLUMNS: Final = (
    "run_id",
    "tenant",
    "kind",
    "thread_id",
    "status",
    "owner",
    "cancel_requested",
    "updated_us",
    "last_event",
)
_RESULT: Final = ("answer", "finish_reason", "model", "usage", "output", "error")
REQUEST: Final = tuple(f.name for f in fields(Run) if f.name not in _COLUMNS + _RESULT)
SELECT: Final = """SELECT r.run_id, r.tenant, r.kind, r.thread_id, r.status, r.owner, r.cancel, r.updated_us, r.events,
q.json, s.json FROM runs r JOIN requests q USING (number) LEFT JOIN results s USING (number) WHERE """
COUNT: Final = "SELECT count(*) FROM runs r JOIN requests q USING (number) WHERE "
# A run that was rolled back is there for nobody any more.
SHOWN: Final = "NOT (r.cancel = 2 AND r.open = 0)"
CLAIMABLE: Final = """SELECT number FROM (
  SELECT r.number, row_number() OVER (PARTITION BY r.tenant ORDER BY r.number) AS turn FROM runs r
  WHERE r.open = 1 AND r.owner = ? AND r.status = 'pending' AND (r.thread_id IS NULL OR NOT EXISTS (
    SELECT 1 FROM runs e
    WHERE e.open = 1 AND e.tenant = r.tenant AND e.kind = r.kind AND e.thread_id = r.thread_id AND e.number < r.number))
) ORDER BY turn, number LIMIT ?"""
_UPDATE: Final = "UPDATE runs SET status = ?, open = ?, updated_us = ?, changed = ? WHERE number = ?"
TEXTS: Final = "SELECT text FROM events WHERE number = ? ORDER BY seq"


def next_change(connection: sqlite3.Connection) -> int:
    """Return the number of the change that is being written."""
    (value,) = connection.execute("UPDATE counter SET value = value + 1 RETURNING value").fetchone()
    return int(value)


def number_of(connection: sqlite3.Connection, run_id: str) -> int:
    """Return a run's row number; raises NotFoundError."""
    row = connection.execute("SELECT number FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise missing()
    return int(row[0])


def read(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Run:
    """Return the first run that `where` finds; raises NotFoundError."""
    row = connection.execute(SELECT + where, values).fetchone()
    if row is None:
        raise missing()
    return run_of(row)


def move(connection: sqlite3.Connection, number: int, run: Run) -> None:
    """Write where a run stands now, and with its end what came of it."""
    connection.execute(_UPDATE, (run.status, 0 if run.status.ended else 1, run.updated_us, next_change(connection), number))
    if run.status.ended:
        result = orjson.dumps({name: getattr(run, name) for name in _RESULT})
        connection.execute("INSERT INTO results VALUES (?, ?)", (number, result))
        if run.webhook:
            connection.execute(
                "INSERT INTO deliveries (number, due_us) SELECT number, ? FROM runs WHERE number = ? AND cancel < 2",
                (run.updated_us, number),
            )


def cancel(connection: sqlite3.Connection, run: Run, how: int, now_us: int) -> None:
    """End a pending run; note of a running one that it is to be cancelled (1), and then removed (2)."""
    number = number_of(connection, run.run_id)
    connection.execute(
        "UPDATE runs SET cancel = max(cancel, ?), changed = ? WHERE number = ?", (how, next_change(connection), number)
    )
    if run.status is RunStatus.PENDING:
        move(connection, number, run.after(RunStatus.CANCELLED, now_us))


def remove(connection: sqlite3.Connection, numbers: list[int]) -> int:
    """Remove runs with all that belongs to them, and return how many."""
    for number in numbers:
        for table in ("runs", "requests", "results", "events", "deliveries"):
            connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))  # noqa: S608  # one of those above
    return len(numbers)


def run_of(row: tuple[Any, ...]) -> Run:
    """Return the run that a row of SELECT stands for."""
    *columns, request, result = row
    known = dict(zip(_COLUMNS, columns, strict=True)) | orjson.loads(request) | (orjson.loads(result) if result else {})
    known |= {"status": RunStatus(known["status"]), "cancel_requested": known["cancel_requested"] > 0}
    return Run(**(known | {"scopes": tuple(known["scopes"])}))


def missing() -> NotFoundError:
    """Return the one answer for what is not there and what is another's."""
    return NotFoundError("There is no such run.")
