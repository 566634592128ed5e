"""Small documents that protocols keep for a tenant beside its runs: threads, assistants, contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.identity.principal import Principal
from cluster.runs.run_store import Document
from serve_apps.run_records import RunRecords


class RunDocuments:
    """The part of `Runs` that keeps them; another tenant's is not found."""

    def __init__(self, records: RunRecords) -> None:
        self._records = records
        self._store = records.store

    async def put_document(
        self, principal: Principal, kind: str, id_: str, json: dict[str, Any], version: int | None = None
    ) -> Document:
        """Write a small document of a protocol; with `version` only when it has that one, 0 for when there is none."""
        return await self._records.read(self._store.put_document, str(principal.tenant), kind, id_, json, version)

    async def get_document(self, principal: Principal, kind: str, id_: str) -> Document:
        """Return a document; raises NotFoundError."""
        return await self._records.read(self._store.get_document, str(principal.tenant), kind, id_)

    async def list_documents(self, principal: Principal, kind: str, *, after: str = "", limit: int = 100) -> Sequence[Document]:
        """Return the tenant's documents of a kind by id, those after `after`."""
        return await self._records.read(self._store.list_documents, str(principal.tenant), kind, after=after, limit=limit)

    async def delete_document(self, principal: Principal, kind: str, id_: str) -> None:
        """Remove a document; raises NotFoundError."""
        await self._records.read(self._store.delete_document, str(principal.tenant), kind, id_)
