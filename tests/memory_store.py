"""A store in memory, for tests that make tens of thousands of objects; it passes the contract of the real ones."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from cluster.errors import NotFoundError
from cluster.storage.object_store import ObjectInfo, PutOutcome, check_key


class MemoryObjectStore:
    """Objects in a dictionary; outlives whoever uses it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._keys: list[str] = []

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        if check_key(key) in self.objects:
            return PutOutcome.EXISTS
        self.objects[key] = data
        insort(self._keys, key)
        return PutOutcome.CREATED

    def get(self, key: str) -> bytes:
        if check_key(key) not in self.objects:
            raise NotFoundError(f"There is no object {key} in memory.")
        return self.objects[key]

    def head(self, key: str) -> ObjectInfo | None:
        if check_key(key) not in self.objects:
            return None
        return ObjectInfo(key, len(self.objects[key]), hashlib.sha256(self.objects[key]).hexdigest())

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        at = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        while at < len(self._keys) and (key := self._keys[at]).startswith(prefix):
            yield ObjectInfo(key, len(self.objects[key]))
            # What was added meanwhile may or may not be seen, as in the real ones.
            at = bisect_right(self._keys, key)

    def describe(self) -> str:
        return "memory://"

    def copy(self) -> MemoryObjectStore:
        """Return another store with the same objects."""
        other = MemoryObjectStore()
        other.objects, other._keys = dict(self.objects), list(self._keys)
        return other

    def delete(self, key: str) -> bytes:
        """Take an object away, as somebody with the keys of the store could."""
        self._keys.remove(key)
        return self.objects.pop(key)
