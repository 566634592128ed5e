"""The embedded backend of kept answers: one SQLite file for all gateways of the box."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from cluster.errors import OverloadedError
from cluster.runs.answers import Begun, CallKey, KeptAnswer, Known, Progress
from cluster.runs.sqlite_file import SqliteFile

VERSION: Final = 1
# How much each tenant has is counted with each change, for begin asks it every time.
SCHEMA: Final = """CREATE TABLE answers (
  tenant TEXT NOT NULL, project TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, owner TEXT NOT NULL,
  invocation_id TEXT NOT NULL, began_us INTEGER NOT NULL, progress TEXT NOT NULL, status INTEGER, headers BLOB, body BLOB,
  size INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, project, key)
);
CREATE INDEX ages ON answers (began_us);
CREATE TABLE totals (tenant TEXT PRIMARY KEY, keys INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER came AFTER INSERT ON answers BEGIN INSERT INTO totals VALUES (new.tenant, 1, new.size)
  ON CONFLICT (tenant) DO UPDATE SET keys = keys + 1, bytes = bytes + new.size; END;
CREATE TRIGGER grew AFTER UPDATE OF size ON answers
  BEGIN UPDATE totals SET bytes = bytes + new.size - old.size WHERE tenant = new.tenant; END;
CREATE TRIGGER went AFTER DELETE ON answers
  BEGIN UPDATE totals SET keys = keys - 1, bytes = bytes - old.size WHERE tenant = old.tenant; END"""
_SELECT: Final = """SELECT fingerprint, owner, invocation_id, began_us, progress, status, headers, body FROM answers
WHERE tenant = ? AND project = ? AND key = ?"""
_PRUNED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class AnswerBounds:
    """What may be kept."""

    keep_us: int = 86_400_000_000
    # Of one answer.
    answer_bytes: int = 4 << 20
    # Of one tenant.
    keys: int = 100_000
    bytes: int = 256 << 20


class SqliteAnswers:
    """Kept answers in a file."""

    def __init__(self, path: Path, bounds: AnswerBounds | None = None) -> None:
        """Open or create the file; raises UnavailableError, ConfigurationError for a file of another release."""
        self._bounds = bounds or AnswerBounds()
        self._file = SqliteFile(path, SCHEMA, VERSION)

    def begin(self, key: CallKey, call: Begun) -> Known | None:
        """Keep `call` as the first with its key, or return what is known of an earlier one."""
        where = (key.tenant, key.project, key.key)

        def write(connection: sqlite3.Connection) -> Known | None:
            row = connection.execute(_SELECT, where).fetchone()
            if row is not None:
                known = _known(row)
                if known.call.began_us > call.began_us - self._bounds.keep_us:
                    return known
                connection.execute("DELETE FROM answers WHERE tenant = ? AND project = ? AND key = ?", where)
            total = connection.execute("SELECT keys, bytes FROM totals WHERE tenant = ?", (key.tenant,)).fetchone()
            if total is not None and (total[0] >= self._bounds.keys or total[1] >= self._bounds.bytes):
                raise OverloadedError(
                    f"{total[0]} answers with {total[1]} bytes are kept for this tenant by Idempotency-Key, which is its bound.",
                    hint="Use the header only where a call must not be done twice.",
                    retry_after_s=60,
                )
            connection.execute(
                "INSERT INTO answers (tenant, project, key, fingerprint, owner, invocation_id, began_us, progress)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'begun')",
                (*where, call.fingerprint, call.owner, call.invocation_id, call.began_us),
            )
            return None

        return self._file.write(write)

    def answered(self, key: CallKey, invocation_id: str, answer: KeptAnswer) -> None:
        """Keep the answer of a call that began."""
        where = (key.tenant, key.project, key.key, invocation_id)
        if len(answer.body) > self._bounds.answer_bytes:
            values: tuple[Any, ...] = (Progress.TOO_LARGE, None, None, None, 0)
        else:
            values = (Progress.ANSWERED, answer.status, orjson.dumps(answer.headers), answer.body, len(answer.body))
        update = """UPDATE answers SET progress = ?, status = ?, headers = ?, body = ?, size = ?
        WHERE tenant = ? AND project = ? AND key = ? AND invocation_id = ?"""
        self._file.write(lambda connection: connection.execute(update, (*values, *where)).rowcount)

    def forget(self, key: CallKey, invocation_id: str) -> None:
        """Forget a call that began."""
        delete = "DELETE FROM answers WHERE tenant = ? AND project = ? AND key = ? AND invocation_id = ?"
        where = (key.tenant, key.project, key.key, invocation_id)
        self._file.write(lambda connection: connection.execute(delete, where).rowcount)

    def prune(self, now_us: int) -> int:
        """Forget what began too long ago."""
        old = """DELETE FROM answers WHERE rowid IN (
          SELECT rowid FROM answers WHERE began_us <= ? LIMIT ?)"""
        pruned = 0

        def write(connection: sqlite3.Connection) -> int:
            return connection.execute(old, (now_us - self._bounds.keep_us, _PRUNED_AT_ONCE)).rowcount

        while some := self._file.write(write, durable=False):
            pruned += some
        return pruned

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _known(row: tuple[Any, ...]) -> Known:
    mark, owner, invocation_id, began_us, progress, status, headers, body = row
    call = Begun(mark, owner, invocation_id, began_us)
    if progress != Progress.ANSWERED:
        return Known(call, Progress(progress))
    pairs = tuple((name, value) for name, value in orjson.loads(headers))
    return Known(call, Progress.ANSWERED, KeptAnswer(status, pairs, body))
