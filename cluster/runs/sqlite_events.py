"""The pieces of runs' answers, in the file of the runs."""

from __future__ import annotations

import sqlite3

from cluster.errors import IllegalTransitionError, PayloadTooLargeError
from cluster.runs.run import RunStatus
from cluster.runs.run_store import Bounds
from cluster.runs.sqlite_file import SqliteFile
from cluster.runs.sqlite_rows import next_change


class SqliteEvents:
    """The part of the run store that keeps events."""

    _file: SqliteFile
    _bounds: Bounds

    def append_event(self, run_id: str, text: str) -> int:
        """Add a piece to a running run's answer and return its number."""
        size = len(text.encode("utf-8", "surrogatepass"))

        def write(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "SELECT number, status, events, event_bytes FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
            if row is None or row[1] != RunStatus.RUNNING:
                raise IllegalTransitionError(f"Run {run_id} does not run, so there is nothing to add to it.")
            number, _, events, event_bytes = row
            if event_bytes + size > self._bounds.event_bytes:
                raise PayloadTooLargeError(
                    f"The answer is longer than the {self._bounds.event_bytes} bytes that are kept of a run."
                )
            connection.execute("INSERT INTO events VALUES (?, ?, ?)", (number, events + 1, text))
            connection.execute(
                "UPDATE runs SET events = ?, event_bytes = ?, changed = ? WHERE number = ?",
                (events + 1, event_bytes + size, next_change(connection), number),
            )
            return int(events) + 1

        return self._file.write(write, durable=False)

    def events(self, tenant: str, run_id: str, after: int, limit: int) -> list[tuple[int, str]]:
        """Return the pieces with numbers above `after`."""
        page = """SELECT e.seq, e.text FROM events e JOIN runs r USING (number)
        WHERE r.run_id = ? AND r.tenant = ? AND e.seq > ? ORDER BY e.seq LIMIT ?"""
        with self._file.reading() as connection:
            return list(connection.execute(page, (run_id, tenant, after, limit)))
