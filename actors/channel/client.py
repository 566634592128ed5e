"""The caller's end of the channel: many calls at once over one connection to one agent."""

from __future__ import annotations

import asyncio
import ssl as ssl_

from actors.channel.call_stream import WINDOW_CHUNKS, CallStream
from actors.channel.connection import PING_INTERVAL_S, Connection, ProtocolViolationError, error_of
from actors.channel.frames import (
    CALL_HEAD,
    DEFAULT_MAX_FRAME,
    FLAG_STREAM,
    MAX_DEADLINE_MS,
    MAX_STREAM_ID,
    Frame,
    FrameType,
)
from actors.channel.unheard import GivenUp, note_given_up, note_unsent
from cluster.errors import (
    AgentLostError,
    DeadlineExceededError,
    OverloadedError,
    PayloadTooLargeError,
    SovereignError,
    StaleGenerationError,
    UnavailableError,
)
from cluster.identity.grants import SessionGrant

# An agent ends a call at its deadline and says so; this end waits so much longer for it to be said.
GRACE_S = 0.25
_CALL, _CHUNK, _RESULT, _ERROR, _CANCEL, _CREDIT = (
    FrameType.CALL,
    FrameType.CHUNK,
    FrameType.RESULT,
    FrameType.ERROR,
    FrameType.CANCEL,
    FrameType.CREDIT,
)


class _Pending:
    """A call under way: its end is `done`, its timer is the caller's own deadline."""

    __slots__ = ("done", "timer")

    def __init__(self, done: asyncio.Future[bytes], timer: asyncio.TimerHandle) -> None:
        self.done = done
        self.timer = timer

    def on_chunk(self, chunk: bytes) -> None:
        raise ProtocolViolationError("Chunks came for a call that did not ask for a stream.")

    def on_result(self, body: bytes) -> None:
        if not self.done.done():
            self.done.set_result(body)

    def on_error(self, error: SovereignError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class ChannelClient:
    """A kept connection to one agent's process. It is never reopened: after a loss, resolve the agent again."""

    def __init__(self, connection: _ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        ssl: ssl_.SSLContext | None = None,
        max_pending: int = 256,
        max_frame: int = DEFAULT_MAX_FRAME,
        ping_interval_s: float = PING_INTERVAL_S,
        timeout_s: float = 5.0,
    ) -> ChannelClient:
        """Connect and exchange limits within `timeout_s` seconds; raises UnavailableError, and then nothing was started."""
        loop = asyncio.get_running_loop()
        connection: _ClientConnection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _ClientConnection(max_pending, max_frame, ping_interval_s), host, port, ssl=ssl
                )
                await connection.ready
        except (OSError, TimeoutError) as e:
            if connection is not None:
                connection.kill()
            reason = "it did not answer in time" if isinstance(e, TimeoutError) else str(e)
            raise UnavailableError(f"No agent answers at {host}:{port}: {reason}.", hint="Ask the directory again.") from None
        except BaseException:
            if connection is not None:
                connection.kill()
            raise
        return cls(connection)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone; a later call raises AgentLostError, or StaleGenerationError if the agent took leave."""
        return self._connection.closed

    @property
    def pending(self) -> int:
        """Calls under way, with those given up that the agent has not ended yet."""
        return len(self._connection.calls) + len(self._connection.given_up)

    async def call(self, payload: bytes, *, grant: SessionGrant, deadline_s: float, until_stopped: bool = False) -> bytes:
        """Return the agent's answer to `payload`.

        Raises what the agent raised; DeadlineExceededError after `deadline_s` seconds; OverloadedError when the connection
        carries as many calls as it may; PayloadTooLargeError; AgentLostError when the connection is lost, at once.
        Cancelling the task that waits here stops the agent's work; with `until_stopped` it ends when that has stopped.
        """
        connection = self._connection
        try:
            if not connection.has_room:
                deadline_s = await connection.room_within(deadline_s)
            stream = connection.open(payload, grant, deadline_s, 0, 0)
        except (SovereignError, asyncio.CancelledError) as error:
            note_unsent(error)
            raise
        loop = connection.loop
        done: asyncio.Future[bytes] = loop.create_future()
        timer = loop.call_later(deadline_s + GRACE_S, connection.expire, stream, deadline_s)
        connection.calls[stream] = _Pending(done, timer)
        try:
            return await done
        except asyncio.CancelledError as left:
            note_given_up(left, connection.give_up(stream))
            if until_stopped:
                await connection.stopped(stream)
            raise

    def stream(self, payload: bytes, *, grant: SessionGrant, deadline_s: float) -> CallStream:
        """Start a call and return the stream of its chunks; the errors of `call` come from the iterator, or from here."""
        connection = self._connection
        try:
            stream = connection.open(payload, grant, deadline_s, FLAG_STREAM, WINDOW_CHUNKS)
        except SovereignError as error:
            note_unsent(error)
            raise
        call = CallStream(connection, stream, connection.loop.time() + deadline_s)
        call.timer = connection.loop.call_at(call.deadline_at + GRACE_S, connection.expire, stream, deadline_s)
        connection.calls[stream] = call
        return call

    async def close(self) -> None:
        """Close the connection; what is under way ends with AgentLostError here and is cancelled at the agent."""
        connection = self._connection
        connection.close("The caller closed the connection.")
        await asyncio.wait([connection.lost], timeout=2.0)
        if not connection.lost.done():
            connection.kill()


class _ClientConnection(Connection):
    """The frames of one caller's connection."""

    is_client = True
    greeting_bytes = 16 << 10  # a server that is full says so instead of HELLO

    def __init__(self, max_pending: int, max_frame: int, ping_interval_s: float) -> None:
        super().__init__(max_frame=max_frame, ping_interval_s=ping_interval_s)
        self.loop = self._loop
        self.calls: dict[int, _Pending | CallStream] = {}
        # Calls that this end gave up and the agent has not ended yet: they still hold a place there. Done when it has.
        self.given_up: dict[int, GivenUp] = {}
        self.ready: asyncio.Future[None] = self._loop.create_future()
        # Looked at even if nobody waits any more, or the loop would complain of an exception never retrieved.
        self.ready.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._max_pending = max_pending
        self._peer_max_frame = 0
        self._last_id = 0
        # Calls that are not sent yet because the agent reads too slowly.
        self._held_back = 0
        self._why = ""
        # Whether the agent said that it goes: it has answered what it began, and begins nothing more.
        self._farewell = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.say_hello(self._max_pending)

    def on_hello(self, max_frame: int, max_streams: int) -> None:
        self._peer_max_frame = max_frame
        self._max_pending = min(self._max_pending, max_streams)
        if not self.ready.done():
            self.ready.set_result(None)

    def on_frame(self, frame: Frame) -> None:
        type_, _, stream, body = frame
        if stream == 0 and type_ == _ERROR:
            error = error_of(body)
            self._farewell = isinstance(error, StaleGenerationError)
            self.close(error.detail)
            return
        call = self.calls.get(stream)
        if call is None:
            self._on_late(frame)
        elif type_ == _RESULT:
            self._ended(stream, call).on_result(body)
        elif type_ == _CHUNK:
            call.on_chunk(body)
        elif type_ == _ERROR:
            self._ended(stream, call).on_error(error_of(body))
        else:
            raise ProtocolViolationError(f"An agent does not send {FrameType(type_).name} frames.")

    def on_lost(self, why: str) -> None:
        self._why = why
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(why))
        calls, self.calls = self.calls, {}
        for stream in list(self.given_up):
            self._stopped(stream)
        for call in calls.values():
            if call.timer is not None:
                call.timer.cancel()
            call.on_error(self._lost_error())

    def open(self, payload: bytes, grant: SessionGrant, deadline_s: float, flags: int, credit: int) -> int:
        """Sign and queue a CALL frame, and return its stream."""
        if self.closed:
            raise self._lost_error()
        self._check_bound()
        if deadline_s <= 0:
            raise DeadlineExceededError("The call's deadline passed before it was sent.")
        deadline_ms = max(int(min(deadline_s * 1000, MAX_DEADLINE_MS)), 1)
        signed = grant.sign(payload, deadline_ms=deadline_ms, flags=flags)
        size = CALL_HEAD.size + len(signed) + len(payload)
        if size > min(self._max_frame, self._peer_max_frame):
            raise PayloadTooLargeError(f"The call has {size} bytes; the agent takes {self._peer_max_frame}.")
        stream = self._last_id = self._next_id()
        self.send(_CALL, stream, CALL_HEAD.pack(deadline_ms, len(signed), credit) + signed + payload, flags)
        return stream

    async def room_within(self, deadline_s: float) -> float:
        """Wait until a call may be queued; returns the seconds that are left of `deadline_s`."""
        self._check_bound()
        self._held_back += 1
        started = self._loop.time()
        try:
            async with asyncio.timeout(deadline_s):
                await self.room()
        except TimeoutError:
            raise DeadlineExceededError(
                f"The call could not be sent within {deadline_s:g} s: the agent reads too slowly."
            ) from None
        finally:
            self._held_back -= 1
        return deadline_s - (self._loop.time() - started)

    def expire(self, stream: int, deadline_s: float) -> None:
        """End a call by this end's own clock."""
        if (call := self.calls.get(stream)) is not None:
            self.give_up(stream)
            call.on_error(DeadlineExceededError(f"The agent did not answer within {deadline_s:g} s."))

    def give_up(self, stream: int) -> GivenUp | None:
        """Tell the agent to stop a call that nobody waits for any more; returns what it says of its end, None after its end."""
        if (call := self.calls.pop(stream, None)) is not None:
            if call.timer is not None:
                call.timer.cancel()
            self.given_up[stream] = self.loop.create_future()
            self.send(_CANCEL, stream)
        return self.given_up.get(stream)

    async def stopped(self, stream: int) -> None:
        """Wait until the agent has ended a call that was given up, which it does when its last fact is written."""
        if (gone := self.given_up.get(stream)) is not None:
            await asyncio.shield(gone)

    def _check_bound(self) -> None:
        if len(self.calls) + len(self.given_up) + self._held_back >= self._max_pending:
            raise OverloadedError(f"The connection to the agent carries {self._max_pending} calls, which is its bound.")

    def _ended(self, stream: int, call: _Pending | CallStream) -> _Pending | CallStream:
        del self.calls[stream]
        if call.timer is not None:
            call.timer.cancel()
        return call

    def _on_late(self, frame: Frame) -> None:
        if frame.stream not in self.given_up:
            raise ProtocolViolationError(f"A frame for stream {frame.stream} came, which is not open.")
        if frame.type == _ERROR:
            self._stopped(frame.stream, error_of(frame.body).spent)
        elif frame.type == _RESULT:
            self._stopped(frame.stream)

    def _stopped(self, stream: int, spent: tuple[int, int] | None = None) -> None:
        gone = self.given_up.pop(stream)
        if not gone.done():
            gone.set_result(spent)

    def _next_id(self) -> int:
        stream = self._last_id % MAX_STREAM_ID + 1
        while stream in self.calls or stream in self.given_up:
            stream = stream % MAX_STREAM_ID + 1
        return stream

    def _lost_error(self) -> SovereignError:
        if self._farewell:
            return StaleGenerationError(self._why, hint="Ask the directory again.")
        return AgentLostError(f"The agent's process ended, or cannot be reached. {self._why}", hint="Ask the directory again.")
