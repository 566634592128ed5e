"""JSON documents of the lake: one form for one content, so that two writers of the same content write the same bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from cluster.errors import IntegrityError

# Of plans and of what says that one is done. A release reads all formats up to its own.
FORMAT: Final = 1


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return a document's bytes: ASCII, sorted names, no spaces, one line."""
    return json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def from_bytes(key: str, data: bytes) -> dict[str, Any]:
    """Return what a document says; raises IntegrityError when it is none, or of a later release."""
    try:
        content = json.loads(data)
    except ValueError as e:
        raise IntegrityError(f"{key} is no document: {e}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise IntegrityError(f"{key} is no document of the lake.")
    if content["format"] > FORMAT:
        raise IntegrityError(f"{key} is of format {content['format']}, which a later release wrote.", hint="Upgrade this one.")
    return content


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes as lower-case hex."""
    return hashlib.sha256(data).hexdigest()
