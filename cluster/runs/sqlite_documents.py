"""Small documents of protocols, in the file of the runs: threads, assistants, contexts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from cluster.errors import ConflictError, NotFoundError, PayloadTooLargeError, QuotaExceededError
from cluster.runs.run_store import Bounds, Document
from cluster.runs.sqlite_file import SqliteFile

SCHEMA = """CREATE TABLE documents (
  tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,
  created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, json BLOB NOT NULL, PRIMARY KEY (tenant, kind, id)
) WITHOUT ROWID"""
_ONE = "SELECT id, json, version, created_us, updated_us FROM documents WHERE tenant = ? AND kind = ? AND id = ?"
_PAGE = """SELECT id, json, version, created_us, updated_us FROM documents
WHERE tenant = ? AND kind = ? AND id > ? ORDER BY id LIMIT ?"""


class SqliteDocuments:
    """The part of the run store that keeps documents."""

    def __init__(self, file: SqliteFile, bounds: Bounds, now_us: Callable[[], int]) -> None:
        self._file = file
        self._bounds = bounds
        self._now_us = now_us

    def put_document(self, tenant: str, kind: str, id_: str, json: dict[str, Any], version: int | None) -> Document:
        """Write a document, only at `version` when that is given."""
        data = orjson.dumps(json)
        if len(data) > self._bounds.document_bytes:
            raise PayloadTooLargeError(f"The {kind} {id_} has {len(data)} bytes; the most is {self._bounds.document_bytes}.")
        now_us = self._now_us()

        def write(connection: sqlite3.Connection) -> Document:
            found = connection.execute(_ONE, (tenant, kind, id_)).fetchone()
            has = found[2] if found else 0
            if version is not None and version != has:
                why = f"has version {has}, not {version}" if has else "does not exist"
                raise ConflictError(f"The {kind} {id_} {'exists already' if version == 0 else why}.")
            if not found:
                (count,) = connection.execute(
                    "SELECT count(*) FROM documents WHERE tenant = ? AND kind = ?", (tenant, kind)
                ).fetchone()
                if count >= self._bounds.documents:
                    raise QuotaExceededError(
                        f"The tenant has {count} of the kind {kind}, which is the most.", hint="Delete some."
                    )
            created_us = found[3] if found else now_us
            connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
                (tenant, kind, id_, has + 1, created_us, now_us, data),
            )
            return Document(id_, json, has + 1, created_us, now_us)

        return self._file.write(write)

    def get_document(self, tenant: str, kind: str, id_: str) -> Document:
        """Return a document; raises NotFoundError."""
        with self._file.reading() as connection:
            row = connection.execute(_ONE, (tenant, kind, id_)).fetchone()
        if row is None:
            raise _missing(kind, id_)
        return _document(row)

    def list_documents(self, tenant: str, kind: str, *, after: str, limit: int) -> Sequence[Document]:
        """Return documents of a kind by id, those after `after`."""
        with self._file.reading() as connection:
            return [_document(row) for row in connection.execute(_PAGE, (tenant, kind, after, max(0, limit)))]

    def delete_document(self, tenant: str, kind: str, id_: str) -> None:
        """Remove a document; raises NotFoundError."""

        def write(connection: sqlite3.Connection) -> None:
            gone = connection.execute("DELETE FROM documents WHERE tenant = ? AND kind = ? AND id = ?", (tenant, kind, id_))
            if not gone.rowcount:
                raise _missing(kind, id_)

        self._file.write(write)


def _document(row: tuple[Any, ...]) -> Document:
    id_, json, version, created_us, updated_us = row
    return Document(id_, orjson.loads(json), version, created_us, updated_us)


def _missing(kind: str, id_: str) -> NotFoundError:
    return NotFoundError(f"There is no {kind} {id_[:80]}.")
