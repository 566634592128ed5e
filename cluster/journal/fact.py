"""A fact: one thing that happened, as it is written to a journal and read back from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgpack

from cluster.errors import IntegrityError, InvalidRequestError, PayloadTooLargeError

FACT_VERSION = 1
# A bound on one fact, so that a reader's memory has one too. A usage event takes about 600 bytes.
MAX_FACT_BYTES = 4 << 20


class Stream(StrEnum):
    """What a fact is about, and so which way it goes from the journal."""

    # A call was admitted; without a usage event of the same `event_id` it ends as lost.
    CALL = "call"
    USAGE = "usage"
    AUDIT = "audit"
    # The shipper's own memory: intents, shipments and checkpoints.
    SHIP = "ship"
    # A process's reservations; in journals of their own, which are not shipped.
    LEASE = "lease"


_STREAMS = {s.value: s for s in Stream}


@dataclass(frozen=True, slots=True)
class Fact:
    """A body of plain values (None, bool, 64-bit int, float, str, bytes, list, dict) on one stream."""

    stream: Stream
    body: dict[str, Any]

    def encode(self) -> bytes:
        """Return the fact as bytes (msgpack of version, stream, body).

        Raises InvalidRequestError for a value that has no place in a journal, PayloadTooLargeError above 4 MiB.
        """
        return encode_body(self.stream, self.body)


def encode_body(stream: Stream, body: dict[str, Any]) -> bytes:
    """Return the bytes of `Fact(stream, body)`, without building it; raises what `Fact.encode` raises."""
    try:
        # A packer of its own for each call: a shared one would be one more thing that threads could meet in.
        payload: bytes = msgpack.packb((FACT_VERSION, stream, body))
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidRequestError(
            f"A fact on stream {stream} cannot be written: {e}.",
            hint="Use only None, booleans, 64-bit integers, floats, valid text, bytes, lists and dictionaries.",
        ) from None
    if len(payload) > MAX_FACT_BYTES:
        raise PayloadTooLargeError(f"A fact on stream {stream} has {len(payload)} bytes; the most is {MAX_FACT_BYTES}.")
    return payload


def decode_fact(payload: bytes | memoryview) -> Fact:
    """Return the fact that `Fact.encode` wrote; raises IntegrityError for bytes that are none, or of a later version."""
    try:
        parts = msgpack.unpackb(payload)
        version, stream, body = parts
    except (ValueError, TypeError, msgpack.UnpackException) as e:
        raise IntegrityError(f"A journal record is not a fact: {e}.") from None
    if version != FACT_VERSION:
        raise IntegrityError(
            f"A fact has format version {version!r}; this program reads {FACT_VERSION}.",
            hint="It was written by a newer release: read it with that release.",
        )
    if stream not in _STREAMS or not isinstance(body, dict):
        raise IntegrityError(f"A journal record names the unknown stream {str(stream)[:80]!r} or has no body.")
    return Fact(_STREAMS[stream], body)
