"""One SQLite file in WAL mode for all gateways: writers that come together share one transaction, and one sync of the disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import ConfigurationError, SovereignError, UnavailableError

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], T]
_MAX_BATCH = 64
_MAX_IDLE_READERS = 8


class _Waiting:
    """One caller's write on its way into a shared commit."""

    __slots__ = ("action", "done", "durable", "error", "result")

    def __init__(self, action: Write[Any], durable: bool) -> None:
        self.action = action
        self.durable = durable
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False


class SqliteFile:
    """A file with a versioned schema. For any number of threads and processes; not across a fork."""

    def __init__(self, path: Path, schema: str, version: int, *, busy_timeout_s: float = 10.0) -> None:
        """Open or create the file (mode 0600). Raises UnavailableError, or ConfigurationError for one of another version."""
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._closed = False
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        # Held by the one caller that commits for all that wait.
        self._write_lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Never opened and closed by ourselves: that would end the locks that SQLite holds on it for this process.
            with contextlib.suppress(FileExistsError):
                os.mknod(path, stat.S_IFREG | 0o600)
            self._writer = self._open()
            self._patiently(lambda: self._writer.execute("PRAGMA journal_mode=WAL"))
            self._make(schema, version)
            self._watcher = self._open()
            self._seen = -1
        except (OSError, sqlite3.Error) as e:
            raise self._unavailable("could not be opened", e) from e

    def write(self, action: Write[T], *, durable: bool = True) -> T:
        """Return what `action` returns once it is committed, on disk if `durable`; what it raises takes it back."""
        waiting = _Waiting(action, durable)
        with self._queue_lock:
            self._queue.append(waiting)
        with self._write_lock:
            while not waiting.done:
                with self._queue_lock:
                    batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
                self._commit(batch)
        if waiting.error is not None:
            raise waiting.error
        result: T = waiting.result
        return result

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that no other thread uses; readers see the last commit and wait for no writer."""
        self._check_usable()
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._open()
        try:
            yield connection
        except sqlite3.Error as e:
            # A connection that failed is not lent again.
            connection.close()
            raise self._unavailable("could not be read", e) from e
        if self._closed or len(self._readers) >= _MAX_IDLE_READERS:
            connection.close()
        else:
            self._readers.append(connection)

    def changed(self) -> bool:
        """Return whether anybody committed since this was last asked. A few microseconds; for one thread."""
        self._check_usable()
        try:
            (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as e:
            raise self._unavailable("could not be read", e) from e
        before, self._seen = self._seen, version
        return bool(version != before)

    def close(self) -> None:
        """Close every connection of this process."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._writer.close()
            self._watcher.close()
        while self._readers:
            self._readers.pop().close()

    def _commit(self, batch: list[_Waiting]) -> None:
        """Give each of `batch` its result, its own error, or an error of the file for all."""
        try:
            self._check_usable()
            durable = any(w.durable for w in batch)
            # In WAL mode a commit that is not synced survives the death of every process, and not of the machine.
            self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._writer.execute("BEGIN IMMEDIATE")
            for waiting in batch:
                self._writer.execute("SAVEPOINT one")
                try:
                    waiting.result = waiting.action(self._writer)
                except SovereignError as e:
                    waiting.error = e
                    self._writer.execute("ROLLBACK TO one")
                self._writer.execute("RELEASE one")
            self._writer.execute("COMMIT")
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

    def _make(self, schema: str, version: int) -> None:
        """Make the tables of a new file; raises ConfigurationError for one of another version."""
        self._patiently(lambda: self._writer.execute("BEGIN IMMEDIATE"))
        (found,) = self._writer.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in schema.split(";\n"):
                self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version={version}")
        self._writer.execute("COMMIT")
        if found not in (0, version):
            raise ConfigurationError(
                f"The file {self._path} has schema version {found}; this release reads version {version}.",
                hint="Start the release that wrote it, or move the file away: what it remembers is then forgotten.",
            )

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
        if self._closed:
            raise UnavailableError(f"The file {self._path} was closed.")

    def _unavailable(self, what: str, cause: BaseException) -> UnavailableError:
        return UnavailableError(f"The file {self._path} {what}: {cause}.", retry_after_s=1.0)
