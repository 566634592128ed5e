"""What both ends of a channel share: frames in and out, one write a loop tick, back-pressure, and noticing a dead peer."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from typing import cast

import msgpack

from actors.channel.frames import (
    DEFAULT_MAX_FRAME,
    HEADER,
    HELLO,
    MAGIC,
    VERSION,
    Frame,
    FrameDecoder,
    FrameType,
)
from cluster.errors import InternalError, InvalidRequestError, SovereignError, from_problem

log = logging.getLogger("sovereign.channel")

# Bytes waiting to be sent at which senders have to wait.
HIGH_WATER = 256 << 10
# A peer that was silent for three of these is dead; one that does not say HELLO within one is not a peer.
PING_INTERVAL_S = 10.0
_PING, _PONG, _HELLO, _ERROR = FrameType.PING, FrameType.PONG, FrameType.HELLO, FrameType.ERROR


class ProtocolViolationError(InvalidRequestError):
    """The peer sent a frame that the protocol does not allow here; its connection ends."""

    code = "protocol_violation"


class Connection(asyncio.Protocol):
    """One end of one connection. A subclass gives meaning to the frames."""

    # A client pings at every interval, so that a server hears of it also while it only waits.
    is_client = False
    # Largest body in bytes before the peer said HELLO.
    greeting_bytes = HELLO.size

    def __init__(self, *, max_frame: int = DEFAULT_MAX_FRAME, ping_interval_s: float = PING_INTERVAL_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_frame = max_frame
        self._decoder = FrameDecoder(self.greeting_bytes)
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._stalled = False
        self._stalled_since = 0.0
        self._room: asyncio.Future[None] | None = None
        self._silent_ticks = 0
        self._ping_interval_s = ping_interval_s
        self._tick: asyncio.TimerHandle | None = None
        # True from the first fault or loss on: nothing is sent or handled any more.
        self.closed = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    # What a subclass says.

    @abstractmethod
    def on_hello(self, max_frame: int, max_streams: int) -> None:
        """Take the peer's limits: largest body in bytes, and calls at once."""

    @abstractmethod
    def on_frame(self, frame: Frame) -> None:
        """Handle one frame; raises ProtocolViolationError when it is not allowed."""

    @abstractmethod
    def on_lost(self, why: str) -> None:
        """End every call of this connection; called once."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to watch the peer."""
        # uvloop's transports are no subclass of asyncio's, though they do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._tick = self._loop.call_later(self._ping_interval_s, self._watch)

    def data_received(self, data: bytes) -> None:
        """Handle the frames that these bytes complete."""
        self._silent_ticks = 0
        try:
            for frame in self._decoder.feed(data):
                if self.closed:
                    return
                self._handle(frame)
            if self._decoder.fault is not None and not self.closed:
                self.abort(ProtocolViolationError(self._decoder.fault))
        except ProtocolViolationError as e:
            self.abort(e)
        except Exception:
            log.exception("A frame could not be handled; its connection ends.")
            self.abort(InternalError("The frame could not be handled."))

    def connection_lost(self, exc: Exception | None) -> None:
        """End everything that waits for this connection."""
        self._end(f"The connection was lost{f' ({exc})' if exc else ''}.")
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """The transport is full: the peer reads slower than is written."""
        self._stalled = True
        self._stalled_since = time.monotonic()

    def resume_writing(self) -> None:
        """The transport has room again."""
        self._stalled = False
        self._wake_writers()

    # Sending

    def send(self, type_: int, stream: int, body: bytes = b"", flags: int = 0) -> None:
        """Queue a frame; all that one loop tick queues leaves in one write."""
        if self.closed:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        # Two parts, so that a large body is copied once, by the join.
        self._out.append(HEADER.pack(len(body), type_, flags, 0, stream))
        if body:
            self._out.append(body)
        self._out_bytes += len(body) + 12

    @property
    def has_room(self) -> bool:
        """Whether what waits to be sent is below the high-water mark."""
        return not self._stalled and self._out_bytes < HIGH_WATER

    async def room(self) -> None:
        """Wait until a body may be queued, or the connection is gone. Queue it before the next await."""
        while not self.has_room and not self.closed:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def say_hello(self, max_streams: int) -> None:
        """Queue this end's HELLO."""
        self.send(_HELLO, 0, HELLO.pack(MAGIC, VERSION, self._max_frame, max_streams))

    def abort(self, error: SovereignError) -> None:
        """Tell the peer why, and close. Nothing that comes later is handled."""
        if self.closed:
            return
        log.warning("A channel connection is closed: %s", error.detail)
        self.send(_ERROR, 0, problem_bytes(error))
        self.close(error.detail)

    def close(self, why: str) -> None:
        """Send what is queued and close; every call of this connection ends."""
        if not self.closed:
            self._end(why, flush=True)
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """Close without sending anything more."""
        if self._transport is not None:
            self._transport.abort()

    # Inside

    def _handle(self, frame: Frame) -> None:
        if not self._greeted:
            self._greet(frame)
        elif frame.type == _PING:
            self.send(_PONG, 0, frame.body)
        elif frame.type == _HELLO:
            raise ProtocolViolationError("A second HELLO came.")
        elif frame.type != _PONG:
            self.on_frame(frame)

    def _greet(self, frame: Frame) -> None:
        if frame.type == _ERROR:
            self.close(error_of(frame.body).detail)
            return
        if frame.type != _HELLO or len(frame.body) != HELLO.size:
            raise ProtocolViolationError("The first frame is not HELLO.")
        magic, version, max_frame, max_streams = HELLO.unpack(frame.body)
        if magic != MAGIC or version != VERSION:
            raise ProtocolViolationError(f"The peer does not speak version {VERSION} of this channel.")
        self._greeted = True
        self._decoder.limit = self._max_frame
        self.on_hello(max_frame, max_streams)

    def _flush(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if not self._stalled:
            self._wake_writers()

    def _wake_writers(self) -> None:
        waiter, self._room = self._room, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _watch(self) -> None:
        """Run once a ping interval: a silent peer is pinged, then given up; so is one that stopped to read."""
        self._tick = self._loop.call_later(self._ping_interval_s, self._watch)
        self._silent_ticks += 1
        stuck = self._stalled and time.monotonic() - self._stalled_since > 3 * self._ping_interval_s
        if not self._greeted or self._silent_ticks > 3 or stuck:
            self._end("The peer stopped to read." if stuck else "The peer does not answer.")
            self.kill()
        elif self._silent_ticks > 1 or self.is_client:
            self.send(_PING, 0)

    def _end(self, why: str, *, flush: bool = False) -> None:
        if self.closed:
            return
        if flush:
            self._flush()
        self.closed = True
        self._out.clear()
        if self._tick is not None:
            self._tick.cancel()
        self._wake_writers()
        self.on_lost(why)


def problem_bytes(error: SovereignError) -> bytes:
    """Return an error as the body of an ERROR frame, at most about 16 KB of it."""
    problem = error.to_problem()
    if error.spent is not None:
        problem["spent"] = error.spent
    problem["detail"] = problem["detail"][:4096]
    problem["hint"] = problem.get("hint", "")[:4096]
    problem["errors"] = [{k: v[:512] for k, v in e.items()} for e in problem.get("errors", ())[:16]]
    packed: bytes = msgpack.packb(problem, unicode_errors="replace")
    return packed


def error_of(body: bytes) -> SovereignError:
    """Return the error in an ERROR frame; bytes that are no problem document become InternalError."""
    try:
        return from_problem(msgpack.unpackb(body))
    except Exception:  # the bytes are the peer's: whatever is wrong with them, they are only "no error document"
        return InternalError("The peer reported an error that cannot be read.")
