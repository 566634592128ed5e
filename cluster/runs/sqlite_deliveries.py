"""Whose end is still to be told, in the file of the runs: written with the end itself, so that none is forgotten."""

from __future__ import annotations

import sqlite3

from cluster.runs.sqlite_file import SqliteFile
from cluster.runs.sqlite_rows import read
from cluster.runs.webhook import Delivery


class SqliteDeliveries:
    """The part of the run store that keeps deliveries."""

    _file: SqliteFile

    def due_deliveries(self, now_us: int, again_us: int, limit: int) -> list[Delivery]:
        """Return deliveries that are due, each due again at `again_us`."""
        due = "SELECT number, tries FROM deliveries WHERE due_us <= ? ORDER BY due_us LIMIT ?"

        def write(connection: sqlite3.Connection) -> list[Delivery]:
            found = []
            for number, tries in connection.execute(due, (now_us, limit)).fetchall():
                connection.execute("UPDATE deliveries SET due_us = ?, tries = tries + 1 WHERE number = ?", (again_us, number))
                found.append(Delivery(read(connection, "r.number = ?", (number,)), tries + 1))
            return found

        return self._file.write(write)

    def next_delivery_us(self) -> int | None:
        """Return when the next one is due."""
        with self._file.reading() as connection:
            due_us: int | None = connection.execute("SELECT min(due_us) FROM deliveries").fetchone()[0]
        return due_us

    def put_off(self, run_id: str, due_us: int) -> None:
        """Try again at `due_us`."""
        later = "UPDATE deliveries SET due_us = ? WHERE number = (SELECT number FROM runs WHERE run_id = ?)"
        self._file.write(lambda connection: connection.execute(later, (due_us, run_id)).rowcount)

    def delivered(self, run_id: str) -> None:
        """Forget a delivery."""
        done = "DELETE FROM deliveries WHERE number = (SELECT number FROM runs WHERE run_id = ?)"
        self._file.write(lambda connection: connection.execute(done, (run_id,)).rowcount)
