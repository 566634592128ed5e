"""The proof, at start, that an object store refuses to write a key twice. Everything in the lake rests on that."""

from __future__ import annotations

import hashlib
import os

from cluster.errors import ConfigurationError
from cluster.storage.object_store import ObjectStore, PutOutcome

# One key for all starts, so that the proof leaves one small object behind and not one a start.
PROBE_KEY = "_probe/create-only"


def probe_create_only(store: ObjectStore) -> None:
    """Write one key twice and see that the first content stays.

    Raises ConfigurationError when the store took both or changed the content, StorageError when it cannot be reached.
    """
    _put(store)
    before = store.get(PROBE_KEY)
    second = _put(store)
    after = store.get(PROBE_KEY)
    if second is not PutOutcome.EXISTS or after != before:
        raise ConfigurationError(
            f"{store.describe()} ignores `If-None-Match: *`: it wrote a key that existed. Nothing was started.",
            hint="Usage would be lost or counted twice. Use AWS S3, SeaweedFS or another store with conditional writes; "
            "nanio and `rclone serve s3` are not.",
        )


def _put(store: ObjectStore) -> PutOutcome:
    content = b"sovereign create-only probe " + os.urandom(16).hex().encode()
    return store.put_if_absent(PROBE_KEY, content, sha256=hashlib.sha256(content).hexdigest())
