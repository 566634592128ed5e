"""Whose end is still to be told, in the file of the runs: written with the end itself, so that none is forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

import orjson

from cluster.runs.sqlite_file import SqliteFile
from cluster.runs.sqlite_rows import read
from cluster.runs.webhook import MOST_EACH, Delivery

_DUE: Final = """SELECT number, tries FROM (
  SELECT d.number, d.tries, d.due_us, row_number() OVER (PARTITION BY r.tenant ORDER BY d.due_us) AS turn
  FROM deliveries d JOIN runs r USING (number)
  WHERE d.due_us <= ? AND r.tenant NOT IN (SELECT value FROM json_each(?))
) WHERE turn <= ? ORDER BY turn, due_us LIMIT ?"""
_NEXT: Final = """SELECT min(d.due_us) FROM deliveries d JOIN runs r USING (number)
WHERE r.tenant NOT IN (SELECT value FROM json_each(?))"""


class SqliteDeliveries:
    """The part of the run store that keeps deliveries."""

    _file: SqliteFile

    def due_deliveries(
        self, now_us: int, again_us: int, limit: int, *, each: int = MOST_EACH, but: Collection[str] = ()
    ) -> list[Delivery]:
        """Return deliveries that are due, each due again at `again_us`."""
        busy = orjson.dumps([*but]).decode()

        def write(connection: sqlite3.Connection) -> list[Delivery]:
            found = []
            for number, tries in connection.execute(_DUE, (now_us, busy, each, limit)).fetchall():
                connection.execute("UPDATE deliveries SET due_us = ?, tries = tries + 1 WHERE number = ?", (again_us, number))
                found.append(Delivery(read(connection, "r.number = ?", (number,)), tries + 1))
            return found

        return self._file.write(write)

    def next_delivery_us(self, *, but: Collection[str] = ()) -> int | None:
        """Return when the next one is due."""
        ask = _NEXT if but else "SELECT min(due_us) FROM deliveries"
        with self._file.reading() as connection:
            due_us: int | None = connection.execute(ask, (orjson.dumps([*but]).decode(),) if but else ()).fetchone()[0]
        return due_us

    def put_off(self, run_id: str, due_us: int) -> None:
        """Try again at `due_us`."""
        later = "UPDATE deliveries SET due_us = ? WHERE number = (SELECT number FROM runs WHERE run_id = ?)"
        self._file.write(lambda connection: connection.execute(later, (due_us, run_id)).rowcount)

    def delivered(self, run_id: str) -> None:
        """Forget a delivery."""
        done = "DELETE FROM deliveries WHERE number = (SELECT number FROM runs WHERE run_id = ?)"
        self._file.write(lambda connection: connection.execute(done, (run_id,)).rowcount)
