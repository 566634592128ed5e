"""The embedded backend: one SQLite file in WAL mode, each transaction on disk before it returns.

Writers of one process that arrive together share one SQLite transaction and so one sync of the disk, each in a savepoint
of its own; writers of several processes queue at SQLite's lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.coordination.coordination import (
    ABSENT,
    Check,
    CoordinationConflictError,
    Create,
    Delete,
    Node,
    Op,
    Set,
    check_ops,
    check_path,
)
from cluster.errors import InternalError, SovereignError, UnavailableError

# A folder is a row without a value; WITHOUT ROWID keeps the children of one parent next to each other on disk.
_SCHEMA = """CREATE TABLE IF NOT EXISTS nodes (
  parent TEXT NOT NULL, name TEXT NOT NULL, value BLOB, version INTEGER NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID"""
_SELECT = "SELECT value, version FROM nodes WHERE parent = ? AND name = ?"
_CHILDREN = "SELECT name FROM nodes WHERE parent = ? AND name > ? ORDER BY name LIMIT ?"
_VERSION = "SELECT version FROM nodes WHERE parent = ? AND name = ? AND value IS NOT NULL"
_INSERT = "INSERT OR IGNORE INTO nodes (parent, name, value, version) VALUES (?, ?, ?, 0)"
# Without a version given, every version is the right one.
_UPDATE = """UPDATE nodes SET value = ?, version = version + 1
WHERE parent = ? AND name = ? AND value IS NOT NULL AND version = ifnull(?, version)"""
_DELETE = "DELETE FROM nodes WHERE parent = ? AND name = ? AND value IS NOT NULL AND version = ifnull(?, version)"
_MAX_BATCH = 64
_MAX_IDLE_READERS = 8


class _Waiting:
    """One caller's transaction on its way into a shared commit."""

    __slots__ = ("done", "error", "ops")

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.error: SovereignError | None = None
        self.done = False


class SqliteCoordination:
    """Coordination in a file, for all processes of one machine."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 10.0) -> None:
        """Open or create the file at `path` (mode 0600); raises UnavailableError when that can't be done.

        `busy_timeout_s` bounds how long a transaction waits for other processes.
        """
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._pid = os.getpid()
        self._closed = False
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        # Held by the one caller that commits for all that wait.
        self._write_lock = threading.Lock()
        # Only folders of committed transactions; a folder never goes away, so the list is never wrong.
        self._folders: set[str] = set()
        self._readers: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Never opened and closed by ourselves: that would end the locks that other clients of this process hold on it,
            # and the next process to close it would take the log away from under them.
            with contextlib.suppress(FileExistsError):
                os.mknod(path, stat.S_IFREG | 0o600)
            self._writer = self._open()
            self._patiently(lambda: self._writer.execute("PRAGMA journal_mode=WAL"))
            self._writer.execute("PRAGMA synchronous=FULL")
            self._patiently(lambda: self._writer.execute(_SCHEMA))
        except (OSError, sqlite3.Error) as e:
            raise self._unavailable("could not be opened", e) from e

    def get(self, path: str) -> Node | None:
        """Return the node at `path`, or None."""
        where = _split(check_path(path))
        with self._reading() as connection:
            row = connection.execute(_SELECT, where).fetchone()
        return None if row is None or row[0] is None else Node(row[0], row[1])

    def children(self, path: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` names below `path` that are greater than `after`."""
        with self._reading() as connection:
            return [name for (name,) in connection.execute(_CHILDREN, (check_path(path), after, max(0, limit)))]

    def transact(self, ops: Sequence[Op]) -> None:
        """Do all of `ops` or none; returns when they are on disk."""
        check_ops(ops)
        self._check_usable()
        waiting = _Waiting(ops)
        with self._queue_lock:
            self._queue.append(waiting)
        with self._write_lock:
            while not waiting.done:
                with self._queue_lock:
                    batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
                self._commit(batch)
        if waiting.error is not None:
            raise waiting.error

    def close(self) -> None:
        """Close every connection of this process."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        with self._write_lock:
            self._writer.close()
        while self._readers:
            self._readers.pop().close()

    def _commit(self, batch: list[_Waiting]) -> None:
        """Give each of `batch` its result: done on disk, its own conflict, or an error of the store for all."""
        made: set[str] = set()
        try:
            self._check_usable()
            self._writer.execute("BEGIN IMMEDIATE")
            for waiting in batch:
                self._writer.execute("SAVEPOINT one")
                try:
                    folders = self._apply(waiting.ops)
                except CoordinationConflictError as e:
                    waiting.error = e
                    self._writer.execute("ROLLBACK TO one")
                else:
                    made |= folders
                self._writer.execute("RELEASE one")
            self._writer.execute("COMMIT")
            self._folders |= made
        except BaseException as e:
            if not self._closed and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            for waiting in batch:
                waiting.error = self._unavailable("did not take a transaction", e)
            if not isinstance(e, sqlite3.Error | SovereignError):
                raise
        finally:
            for waiting in batch:
                waiting.done = True

    def _apply(self, ops: Sequence[Op]) -> set[str]:
        """Do the operations in order and return the folders that they made; raises CoordinationConflictError."""
        made: set[str] = set()
        for index, op in enumerate(ops):
            if isinstance(op, Create):
                why = self._create(op, made)
            elif isinstance(op, Check):
                why = self._check(op)
            else:
                why = self._change(op)
            if why:
                raise CoordinationConflictError.of(index, op, why)
        return made

    def _create(self, op: Create, made: set[str]) -> str:
        parent, name = _split(op.path)
        if parent not in self._folders and parent not in made and (why := self._make_folders(parent, made)):
            return why
        if self._writer.execute(_INSERT, (parent, name, op.value)).rowcount:
            return ""
        return "exists already" if self._version(op.path) is not None else "is a folder"

    def _make_folders(self, path: str, made: set[str]) -> str:
        parent, name = _split(path)
        if parent and (why := self._make_folders(parent, made)):
            return why
        self._writer.execute(_INSERT, (parent, name, None))
        if self._version(path) is not None:
            return f"would be below {path}, which is not a folder"
        made.add(path)
        return ""

    def _check(self, op: Check) -> str:
        version = self._version(op.path)
        if op.version == ABSENT:
            return "" if version is None else "exists already"
        return "" if version == op.version else self._other_version(version, op.version)

    def _change(self, op: Set | Delete) -> str:
        parent, name = _split(op.path)
        if isinstance(op, Set):
            changed = self._writer.execute(_UPDATE, (op.value, parent, name, op.version))
        else:
            changed = self._writer.execute(_DELETE, (parent, name, op.version))
        if changed.rowcount:
            return ""
        return self._other_version(self._version(op.path), op.version)

    def _version(self, path: str) -> int | None:
        row = self._writer.execute(_VERSION, _split(path)).fetchone()
        return None if row is None else int(row[0])

    @staticmethod
    def _other_version(is_now: int | None, wanted: int | None) -> str:
        return "does not exist" if is_now is None else f"has version {is_now}, not {wanted}"

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that no other thread uses; readers see the last commit and wait for no writer."""
        self._check_usable()
        try:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._open()
            yield connection
        except sqlite3.Error as e:
            # A connection that failed is not lent again.
            connection.close()
            raise self._unavailable("could not be read", e) from e
        if self._closed or len(self._readers) >= _MAX_IDLE_READERS:
            connection.close()
        else:
            self._readers.append(connection)

    def _open(self) -> sqlite3.Connection:
        # Not bound to a thread: whoever holds it has it alone.
        return sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False)

    def _patiently(self, action: Callable[[], object]) -> None:
        """Repeat `action` while another process makes the file: SQLite's own waiting does not cover the change to WAL."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                action()
            except sqlite3.OperationalError as e:
                if "locked" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise InternalError("A coordination client crossed a fork.", hint="Open one of its own in each process.")
        if self._closed:
            raise UnavailableError(f"The coordination file {self._path} was closed.")

    def _unavailable(self, what: str, cause: BaseException) -> UnavailableError:
        return UnavailableError(f"The coordination file {self._path} {what}: {cause}.", retry_after_s=1.0)


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name
