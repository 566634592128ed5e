"""Create-only writing: what we wrote twice is written, and what another wrote under our key is never ours."""

from __future__ import annotations

from cluster.errors import IntegrityError
from cluster.lake.curation import rows_file
from cluster.lake.curation.document import digest
from cluster.lake.curation.done import CuratedObject
from cluster.lake.row_digest import row_digest
from cluster.storage.object_store import ObjectStore, PutOutcome


def create_document(store: ObjectStore, key: str, data: bytes) -> PutOutcome:
    """Create a document; EXISTS means that one stands there, be it ours or another's."""
    return store.put_if_absent(key, data, sha256=digest(data))


def create_equal(store: ObjectStore, key: str, data: bytes) -> None:
    """Create a document, or see that the same one stands there; raises IntegrityError for another."""
    if create_document(store, key, data) is PutOutcome.EXISTS and store.get(key) != data:
        raise IntegrityError(f"{key} says something else than what follows from its plan.", hint=_HINT)


def create_rows(store: ObjectStore, described: CuratedObject, data: bytes) -> None:
    """Create an object, or see that one with the same rows stands there; raises IntegrityError for other rows.

    Bytes may differ between two releases of the Parquet library; the object that is there stays.
    """
    if create_document(store, described.key, data) is PutOutcome.CREATED:
        return
    if row_digest(rows_file.read_rows(described.key, store.get(described.key))) != described.row_digest:
        raise IntegrityError(f"{described.key} holds other rows than those that follow from its plan.", hint=_HINT)


_HINT = f"Nothing more is curated until it is looked at: {rows_file.NAMES_ALL}"
