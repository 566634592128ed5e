"""The embedded backend: runs, their events and small documents in one SQLite file, which all gateways of the box open."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from cluster.clock import Clock, SystemClock
from cluster.errors import ConflictError, OverloadedError
from cluster.runs.run import Multitask, Run, RunLostError, RunStatus, ThreadBusyError
from cluster.runs.run_store import Bounds, Change, Taken, Which
from cluster.runs.sqlite_deliveries import SqliteDeliveries
from cluster.runs.sqlite_documents import SqliteDocuments
from cluster.runs.sqlite_events import SqliteEvents
from cluster.runs.sqlite_file import SqliteFile
from cluster.runs.sqlite_rows import (
    CLAIMABLE,
    COUNT,
    REQUEST,
    SCHEMA,
    SELECT,
    SHOWN,
    TEXTS,
    VERSION,
    cancel,
    missing,
    move,
    next_change,
    number_of,
    read,
    remove,
    run_of,
)

_PRUNED_AT_ONCE: Final = 500


class SqliteRunStore(SqliteDocuments, SqliteEvents, SqliteDeliveries):
    """The run store in a file."""

    def __init__(self, path: Path, bounds: Bounds | None = None, *, clock: Clock | None = None) -> None:
        """Open or create the file; raises UnavailableError, ConfigurationError for a file of another release."""
        bounds = bounds or Bounds()
        super().__init__(SqliteFile(path, SCHEMA, VERSION), bounds, (clock or SystemClock()).now_us)

    def create(self, run: Run, multitask: Multitask) -> None:
        """Keep a new run as pending."""
        request = orjson.dumps({name: getattr(run, name) for name in REQUEST})

        def write(connection: sqlite3.Connection) -> None:
            (waiting,) = connection.execute("SELECT count(*) FROM runs WHERE open = 1 AND tenant = ?", (run.tenant,)).fetchone()
            if waiting >= self._bounds.unfinished:
                raise OverloadedError(
                    f"The tenant has {waiting} runs that have not ended, which is its bound.",
                    hint="Wait for some.",
                    retry_after_s=5,
                )
            if run.thread_id is not None and multitask != "enqueue":
                self._clear_thread(connection, run, multitask)
            number = connection.execute(
                "INSERT INTO runs (run_id, tenant, kind, thread_id, status, open, owner, updated_us, changed)"
                " VALUES (?, ?, ?, ?, 'pending', 1, ?, ?, ?)",
                (run.run_id, run.tenant, run.kind, run.thread_id, run.owner, run.updated_us, next_change(connection)),
            ).lastrowid
            connection.execute("INSERT INTO requests VALUES (?, ?)", (number, request))

        self._file.write(write)

    def claim(self, owner: str, limit: int, now_us: int) -> list[Run]:
        """Return pending runs of `owner` that may begin, now running."""
        with self._file.reading() as connection:
            if connection.execute(CLAIMABLE, (owner, 1)).fetchone() is None:
                return []

        def write(connection: sqlite3.Connection) -> list[Run]:
            found = []
            for (number,) in connection.execute(CLAIMABLE, (owner, limit)).fetchall():
                run = read(connection, "r.number = ?", (number,)).after(RunStatus.RUNNING, now_us)
                move(connection, number, run)
                found.append(run)
            return found

        return self._file.write(write)

    def end(self, run_id: str, status: RunStatus, at_us: int, **changes: Any) -> Run:
        """Write how a running run ended."""

        def write(connection: sqlite3.Connection) -> Run:
            number = number_of(connection, run_id)
            run = read(connection, "r.number = ?", (number,)).after(status, at_us, **changes)
            move(connection, number, run)
            return run

        return self._file.write(write)

    def request_cancel(self, tenant: str, run_id: str, now_us: int) -> Run:
        """Cancel a pending run, tell the owner of a running one."""

        def write(connection: sqlite3.Connection) -> Run:
            run = read(connection, f"r.run_id = ? AND r.tenant = ? AND {SHOWN}", (run_id, tenant))
            if not run.status.ended:
                cancel(connection, run, 1, now_us)
            return read(connection, "r.run_id = ?", (run_id,))

        return self._file.write(write)

    def to_cancel(self, owner: str) -> list[str]:
        """Return the ids of `owner`'s running runs that are to be cancelled."""
        asked = "SELECT run_id FROM runs WHERE open = 1 AND owner = ? AND cancel > 0 AND status = 'running'"
        with self._file.reading() as connection:
            return [run_id for (run_id,) in connection.execute(asked, (owner,))]

    def take_over(self, dead: str, owner: str, now_us: int) -> Taken:
        """Give a dead owner's pending runs to `owner`, and end its running ones as lost."""
        adopt = "UPDATE runs SET owner = ?, changed = ? WHERE open = 1 AND owner = ? AND status = 'pending'"

        def write(connection: sqlite3.Connection) -> Taken:
            adopted = connection.execute(adopt, (owner, next_change(connection), dead)).rowcount
            lost = []
            for (number,) in connection.execute("SELECT number FROM runs WHERE open = 1 AND owner = ?", (dead,)).fetchall():
                run = read(connection, "r.number = ?", (number,))
                error = RunLostError(
                    f"The gateway that carried run {run.run_id} ended under it.",
                    hint="It may have done its work, so it is not done again; usage has what it used, by this invocation id.",
                ).to_problem()
                answer = "".join(text for (text,) in connection.execute(TEXTS, (number,)))
                run = run.after(RunStatus.ERROR, now_us, answer=answer, error=error)
                move(connection, number, run)
                lost.append(run)
            return Taken(adopted, lost)

        return self._file.write(write)

    def owners(self) -> list[str]:
        """Return whoever has runs that have not ended."""
        with self._file.reading() as connection:
            return [owner for (owner,) in connection.execute("SELECT DISTINCT owner FROM runs WHERE open = 1")]

    def get(self, tenant: str, run_id: str) -> Run:
        """Return a run; raises NotFoundError."""
        with self._file.reading() as connection:
            return read(connection, f"r.run_id = ? AND r.tenant = ? AND {SHOWN}", (run_id, tenant))

    def glance(self, tenant: str, run_id: str) -> tuple[RunStatus, int]:
        """Return a run's status and the number of its last event; raises NotFoundError."""
        look = f"SELECT status, events FROM runs r WHERE run_id = ? AND tenant = ? AND {SHOWN}"  # noqa: S608  # ours
        with self._file.reading() as connection:
            row = connection.execute(look, (run_id, tenant)).fetchone()
        if row is None:
            raise missing()
        return RunStatus(row[0]), row[1]

    def list_runs(self, tenant: str, kind: str, which: Which, *, after: str, limit: int) -> Sequence[Run]:
        """Return runs of a kind, the newest first, those older than `after`."""
        wanted, values = _chosen(tenant, kind, which)
        if after:
            wanted += " AND r.number < (SELECT number FROM runs WHERE run_id = ? AND tenant = ?)"
            values += [after, tenant]
        with self._file.reading() as connection:
            rows = connection.execute(f"{SELECT}{wanted} ORDER BY r.number DESC LIMIT ?", (*values, max(0, limit)))
            return list(_page(rows, self._bounds.page_bytes))

    def count_runs(self, tenant: str, kind: str, which: Which) -> int:
        """Return how many there are."""
        wanted, values = _chosen(tenant, kind, which)
        with self._file.reading() as connection:
            found = connection.execute(f"{COUNT}{wanted}", values).fetchone()
        return int(found[0])

    def delete(self, tenant: str, run_id: str) -> None:
        """Remove a run that has ended; raises NotFoundError, ConflictError."""

        def write(connection: sqlite3.Connection) -> None:
            run = read(connection, f"r.run_id = ? AND r.tenant = ? AND {SHOWN}", (run_id, tenant))
            if not run.status.ended:
                raise ConflictError(f"Run {run_id} is {run.status}.", hint="Cancel it first.")
            remove(connection, [number_of(connection, run_id)])

        self._file.write(write)

    def prune(self, now_us: int) -> int:
        """Remove what is over its time or its count."""

        def write(connection: sqlite3.Connection) -> int:
            old = now_us - self._bounds.keep_us
            gone = connection.execute(
                "SELECT number FROM runs r WHERE open = 0 AND (cancel = 2 OR updated_us < ?) LIMIT ?", (old, _PRUNED_AT_ONCE)
            ).fetchall()
            counts = "SELECT tenant, count(*) FROM runs WHERE open = 0 GROUP BY tenant HAVING count(*) > ?"
            for tenant, count in connection.execute(counts, (self._bounds.ended,)).fetchall():
                over = min(count - self._bounds.ended, _PRUNED_AT_ONCE)
                oldest = "SELECT number FROM runs WHERE open = 0 AND tenant = ? ORDER BY updated_us LIMIT ?"
                gone += connection.execute(oldest, (tenant, over)).fetchall()
            return remove(connection, list({number for (number,) in gone}))

        removed = 0
        while some := self._file.write(write, durable=False):
            removed += some
        return removed

    def changed(self) -> bool:
        """Return whether anything was written since this was last asked."""
        return self._file.changed()

    def changes(self, since: int) -> list[Change]:
        """Return the runs that changed after change number `since`."""
        page = "SELECT changed, run_id, status, cancel FROM runs WHERE changed > ? ORDER BY changed"
        with self._file.reading() as connection:
            return [
                Change(n, run_id, RunStatus(status), cancel > 0)
                for n, run_id, status, cancel in connection.execute(page, (since,))
            ]

    def last_change(self) -> int:
        """Return the number of the last change."""
        with self._file.reading() as connection:
            return int(connection.execute("SELECT value FROM counter").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _clear_thread(self, connection: sqlite3.Connection, run: Run, multitask: Multitask) -> None:
        others = "SELECT run_id FROM runs WHERE open = 1 AND tenant = ? AND kind = ? AND thread_id = ?"
        for (other,) in connection.execute(others, (run.tenant, run.kind, run.thread_id)).fetchall():
            if multitask == "reject":
                raise ThreadBusyError(f"The thread {run.thread_id} is busy with run {other}.", hint="Wait for it or cancel it.")
            cancel(connection, read(connection, "r.run_id = ?", (other,)), 2 if multitask == "rollback" else 1, run.created_us)


def _chosen(tenant: str, kind: str, which: Which) -> tuple[str, list[Any]]:
    """Return the condition and its values."""
    wanted, values = f"r.tenant = ? AND r.kind = ? AND {SHOWN}", list[Any]((tenant, kind))
    chosen = (
        ("r.thread_id = ?", which.thread_id),
        ("r.status = ?", which.status),
        ("json_extract(CAST(q.json AS TEXT), '$.agent_id') = ?", which.agent_id),
        ("r.updated_us > ?", which.updated_after_us),
    )
    for clause, value in chosen:
        if value is not None:
            wanted, values = f"{wanted} AND {clause}", [*values, value]
    return wanted, values


def _page(rows: Iterable[tuple[Any, ...]], most_bytes: int) -> Iterator[Run]:
    """Yield the runs of rows until they are large together."""
    size = 0
    for row in rows:
        yield run_of(row)
        size += sum(len(json) for json in row[-2:] if json)
        if size >= most_bytes:
            return
