"""Storing a sealed segment under its one key, and telling our own object from another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import NotFoundError, StorageError
from cluster.lake.layout import quarantine_key
from cluster.lake.row_digest import row_digest
from cluster.lake.seal import Sealed
from cluster.lake.ship_log import Planned
from cluster.storage.object_store import ObjectStore, PutOutcome
from cluster.storage.probe import probe_create_only
from cluster.telemetry.tracing import span


class StoreAwayError(Exception):
    """The store did not take an object or did not answer; what was to be stored stays pending."""

    def __init__(self, cause: StorageError) -> None:
        super().__init__(str(cause))
        # What the store asked for; 0 when it did not.
        self.retry_after_s = cause.retry_after_s or 0.0


@dataclass(frozen=True, slots=True)
class Conflict:
    """Other rows stand under our key: they stay, and ours are under `quarantine`."""

    found_digest: str
    quarantine: str


class Uploader:
    """Writes to one store, after it has proved once that it never overwrites."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._probed = False

    def put(self, planned: Planned, sealed: Sealed, earlier: Sequence[str] = ()) -> Conflict | None:
        """Store a segment; a second time for the same rows is success. Returns what stands in the way of other rows.

        Success, too, is what stands there with one of the digests `earlier`: those of earlier plans for the same key.

        Raises StoreAwayError when it is not known to be stored, ConfigurationError when the store overwrites objects.
        """
        if self._create(planned.key, sealed) is PutOutcome.CREATED:
            return None
        # Bytes may differ between two releases of the Parquet library; what counts is the rows.
        there = self._digest_of(planned.key)
        if there == planned.digest or there in earlier:
            return None
        kept = quarantine_key(planned.key, planned.digest)
        self._create(kept, sealed)
        return Conflict(there, kept)

    def _digest_of(self, key: str) -> str:
        """Return the digest of the rows that stand under a key; for what is no Parquet file, words that are no digest."""
        try:
            data = self._store.get(key)
        except NotFoundError:
            return "nothing"
        except StorageError as e:
            raise StoreAwayError(e) from e
        try:
            return row_digest(pq.read_table(pa.BufferReader(data)))
        except (pa.ArrowException, OSError) as e:
            return f"unreadable: {e}"[:200]

    def _create(self, key: str, sealed: Sealed) -> PutOutcome:
        try:
            if not self._probed:
                probe_create_only(self._store)
                self._probed = True
            with span(
                "put_segment", kind="client", attributes={"sovereign.rows": sealed.rows, "sovereign.bytes": len(sealed.data)}
            ):
                return self._store.put_if_absent(key, sealed.data, sha256=sealed.sha256)
        except StorageError as e:
            raise StoreAwayError(e) from e
