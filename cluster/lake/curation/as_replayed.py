"""The lake as it should be: what was found to be wrong is answered as it was written, so that one fault is told once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from cluster.storage.object_store import ObjectInfo, ObjectStore, PutOutcome


class AsReplayed:
    """An object store to read from, in which single objects are put right in memory."""

    def __init__(self, store: ObjectStore) -> None:
        """Answer from `store` whatever is not put right."""
        self._store = store
        self._right: dict[str, bytes] = {}
        self._hidden: set[str] = set()

    def put_right(self, key: str, data: bytes) -> None:
        """Answer `data` for a key that is missing or was changed."""
        self._right[key] = data

    def hide(self, key: str) -> None:
        """Answer as if there were no such object."""
        self._hidden.add(key)

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        """Refuse: checking writes nothing."""
        raise NotImplementedError(key)

    def get(self, key: str) -> bytes:
        """Return the object's bytes; see ObjectStore."""
        return self._right[key] if key in self._right else self._store.get(key)

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object; see ObjectStore."""
        return ObjectInfo(key, len(self._right[key])) if key in self._right else self._store.head(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects in rising order of keys; see ObjectStore."""
        right = sorted(key for key in self._right if key.startswith(prefix) and key > after)
        ours = (ObjectInfo(key, len(self._right[key])) for key in right)
        theirs = (i for i in self._store.list(prefix, after) if i.key not in self._right and i.key not in self._hidden)
        yield from heapq.merge(ours, theirs, key=lambda i: i.key)

    def describe(self) -> str:
        """Return where the store is."""
        return self._store.describe()
