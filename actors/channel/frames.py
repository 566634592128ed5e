"""Frames and their decoder, without any I/O: bytes in, frames out.

header (12 bytes, big endian): u32 length of the body · u8 type · u8 flags · u16 zero · u32 stream
HELLO   magic, u16 version, u32 largest body, u32 calls at once   both ways, first, stream 0
CALL    u32 deadline in ms · u16 length of the grant · u32 first credit · grant · payload
CHUNK   one piece of a streamed answer, opaque          RESULT  the end of a call, opaque
ERROR   msgpack problem document; on stream 0 the connection ends with it
CANCEL  empty          CREDIT  u32 chunks more          PING, PONG  up to 8 bytes, given back
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("!IBBHI")
HELLO = struct.Struct("!4sHII")
CALL_HEAD = struct.Struct("!IHI")
CREDIT = struct.Struct("!I")
MAGIC = b"SOVC"
VERSION = 1
FLAG_STREAM = 1
MAX_STREAM_ID = 0xFFFF_FFFF
MAX_DEADLINE_MS = 0xFFFF_FFFF
# Credit that one call may have outstanding; more is a fault of the peer.
MAX_CREDIT = 1 << 16
DEFAULT_MAX_FRAME = 4 << 20


class FrameType(IntEnum):
    """What a frame is; the numbers are the wire's."""

    HELLO = 1
    CALL = 2
    CHUNK = 3
    RESULT = 4
    ERROR = 5
    CANCEL = 6
    CREDIT = 7
    PING = 8
    PONG = 9


# The largest body of the types that carry no one's data; the others are bound by the connection's limit.
_SMALL = {
    FrameType.HELLO: HELLO.size,
    FrameType.CANCEL: 0,
    FrameType.CREDIT: CREDIT.size,
    FrameType.PING: 8,
    FrameType.PONG: 8,
}
_BOUNDS: tuple[int, ...] = (-1, *(_SMALL.get(t, 1 << 32) for t in FrameType))


class Frame(NamedTuple):
    """One frame; `type` is a FrameType's number."""

    type: int
    flags: int
    stream: int
    body: bytes


def encode(type_: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Return the bytes of one frame."""
    return HEADER.pack(len(body), type_, flags, 0, stream) + body


class FrameDecoder:
    """Cuts a stream of bytes into frames, however it was split on the way.

    Memory stays below one frame of `limit` bytes plus what one `feed` brought.
    """

    def __init__(self, limit: int) -> None:
        # Largest body in bytes; may be raised between feeds (it is small until the peer said HELLO).
        self.limit = limit
        # Why the bytes stopped being frames; once set, nothing after it is decoded.
        self.fault: str | None = None
        self._rest = bytearray()
        # Bytes that `_rest` must hold before there is anything to do.
        self._needed = HEADER.size

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order; frames before a fault are returned, and `fault` is set."""
        if self.fault is not None:
            return []
        if not self._rest:
            frames, used = self._cut(data)
            if used < len(data):
                self._rest += data[used:] if used else data
            return frames
        self._rest += data
        if len(self._rest) < self._needed:
            return []
        frames, used = self._cut(bytes(self._rest))
        del self._rest[:used]
        return frames

    def _cut(self, data: bytes) -> tuple[list[Frame], int]:
        frames: list[Frame] = []
        size = len(data)
        at = 0
        while size - at >= 12:
            length, type_, flags, zero, stream = HEADER.unpack_from(data, at)
            if not 1 <= type_ <= 9 or zero or flags > FLAG_STREAM:
                self.fault = f"A frame of the unknown type {type_}, or with reserved bits set, came."
                break
            bound = min(self.limit, _BOUNDS[type_])
            if length > bound:
                self.fault = f"A {FrameType(type_).name} frame of {length} bytes came; at most {bound} are taken."
                break
            body = at + 12
            if size - body < length:
                self._needed = 12 + length
                return frames, at
            at = body + length
            frames.append(Frame(type_, flags, stream, data[body:at]))
        self._needed = HEADER.size
        if self.fault is not None:
            self._rest.clear()
            return frames, size
        return frames, at
