"""The port to an object store: whole objects, created once and never changed.

Fails closed: what is not proved to be stored was not stored, and stays where it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cluster.errors import FieldError, InvalidRequestError

# No part begins with a dot: such names belong to files in the making, and `..` leads out.
_KEY = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*")
MAX_KEY = 800


class PutOutcome(StrEnum):
    """What a create-only write did."""

    CREATED = "created"
    # Another object stood there before and still does; nothing was written.
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object without its bytes."""

    key: str
    size_bytes: int
    # Lower-case hex, as given at the write; None where the store was not asked or does not know.
    sha256: str | None = None


class ObjectStore(Protocol):
    """Objects under keys like `usage/raw/v1/ingest_date=2026-01-31/part.parquet`.

    Every method raises InvalidRequestError for a key outside the grammar and StorageError when the store cannot be
    reached or does not answer in bounded time; a write that raised may have happened, and may be tried again.
    """

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        """Create the object in one step, durable when this returns; `sha256` is the lower-case hex digest of `data`.

        Of any number of writers of one key, exactly one gets CREATED; a reader sees the whole object or none.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return the object's bytes; raises NotFoundError."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object, with its digest, or None when there is none."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix` and come after the key `after`, in rising order of keys."""
        ...

    def describe(self) -> str:
        """Return where this store is, for people: a URL without secrets."""
        ...


def check_key(key: str) -> str:
    """Return `key`; raises InvalidRequestError when it is outside the grammar."""
    if len(key) > MAX_KEY or not _KEY.fullmatch(key):
        raise InvalidRequestError(
            "This cannot be an object's key.",
            errors=[
                FieldError("key", f"must be parts of A-Z a-z 0-9 . _ = - joined by '/', none with a dot first; got {key[:80]!r}")
            ],
        )
    return key
