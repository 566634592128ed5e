"""The agent's end of the channel: checks grants, runs the handler for each call, and stops it when nobody waits any more."""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_
from collections.abc import Callable
from typing import Literal

from actors.channel.connection import PING_INTERVAL_S, Connection, ProtocolViolationError, problem_bytes
from actors.channel.frames import (
    CALL_HEAD,
    CREDIT,
    DEFAULT_MAX_FRAME,
    FLAG_STREAM,
    MAX_CREDIT,
    Frame,
    FrameType,
)
from actors.channel.incoming_call import Handler, IncomingCall
from cluster.errors import (
    AgentLostError,
    CancelledCallError,
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    PayloadTooLargeError,
    SovereignError,
    StaleGenerationError,
)
from cluster.identity.grants import GrantVerifier, Refusal

log = logging.getLogger("sovereign.channel")

_CALL, _CHUNK, _RESULT, _ERROR, _CANCEL, _CREDIT = (
    FrameType.CALL,
    FrameType.CHUNK,
    FrameType.RESULT,
    FrameType.ERROR,
    FrameType.CANCEL,
    FrameType.CREDIT,
)


# How long a caller may take to hear that the agent goes, and to close its end.
GOODBYE_S = 1.0


class ChannelServer:
    """Listens for one agent. `handler` answers calls whose grant `verifier` accepts.

    Up to `max_streams` calls at once a connection and `max_connections` connections; one more is refused. `max_frame` is
    the largest frame body in bytes, both ways. `on_refusal` is told the reason of every refused grant.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        verifier: GrantVerifier,
        max_streams: int = 256,
        max_frame: int = DEFAULT_MAX_FRAME,
        max_connections: int = 256,
        ping_interval_s: float = PING_INTERVAL_S,
        ssl: ssl_.SSLContext | None = None,
        on_refusal: Callable[[Refusal], None] | None = None,
    ) -> None:
        self._handler = handler
        self._verifier = verifier
        self._max_streams = max_streams
        self._max_frame = max_frame
        self._max_connections = max_connections
        self._ping_interval_s = ping_interval_s
        self._ssl = ssl
        self._on_refusal = on_refusal
        self._listener: asyncio.Server | None = None
        self._connections: set[_ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def running(self) -> int:
        """How many calls run now."""
        return len(self._tasks)

    async def start(self, host: str, port: int = 0) -> int:
        """Listen on `host`, on any free port if `port` is 0, and return the port."""
        loop = asyncio.get_running_loop()
        handshake_s = self._ping_interval_s if self._ssl else None
        self._listener = await loop.create_server(self._accept, host, port, ssl=self._ssl, ssl_handshake_timeout=handshake_s)
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109  # the calls go on when it passes, so nothing is cancelled
        """Refuse new calls with StaleGenerationError and wait up to `timeout` seconds for the running ones.

        Returns whether all of them finished.
        """
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        return not self._tasks

    async def close(self, timeout_s: float = 5.0) -> None:
        """Stop to listen, cancel what still runs and wait up to `timeout_s` for it; close when the last answers are out."""
        self._draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.stop_calls("closing")
        if self._tasks:
            _, deaf = await asyncio.wait(self._tasks, timeout=timeout_s)
            if deaf:
                log.error("%d calls did not stop when they were cancelled.", len(deaf))
        # Every call that began here has been answered, so who hears this knows that its others never began.
        leaving = [c.say_goodbye() for c in self._connections if not c.has_calls]
        if leaving:
            await asyncio.wait(leaving, timeout=GOODBYE_S)
        lost = [c.lost for c in self._connections]
        for connection in list(self._connections):
            connection.close("The agent's process ends.")
        if lost:
            _, late = await asyncio.wait(lost, timeout=2.0)
            if late:
                for connection in list(self._connections):
                    connection.kill()
                await asyncio.wait(late, timeout=2.0)

    def _accept(self) -> _ServerConnection:
        return _ServerConnection(self)


class _ServerConnection(Connection):
    """One caller's connection."""

    def __init__(self, server: ChannelServer) -> None:
        super().__init__(max_frame=server._max_frame, ping_interval_s=server._ping_interval_s)
        self._server = server
        self._calls: dict[int, IncomingCall] = {}
        self._peer_max_frame = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self._server
        server._connections.add(self)
        if len(server._connections) > server._max_connections:
            self.abort(OverloadedError("The agent has as many connections as it takes."))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._connections.discard(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Who does not read may not ask either. The caller's end always reads, so the two never wait for each other.
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._transport is not None:
            self._transport.resume_reading()

    def on_hello(self, max_frame: int, max_streams: int) -> None:
        self._peer_max_frame = max_frame
        self.say_hello(self._server._max_streams)

    def on_frame(self, frame: Frame) -> None:
        type_ = frame.type
        if type_ == _CALL:
            self._on_call(frame)
        elif type_ == _CANCEL:
            if (call := self._calls.get(frame.stream)) is not None:
                call.stop("cancelled")
        elif type_ == _CREDIT:
            if len(frame.body) != CREDIT.size:
                raise ProtocolViolationError("A CREDIT frame has four bytes.")
            # Credit may cross the end of its call on the way.
            if (call := self._calls.get(frame.stream)) is not None:
                call.add_credit(CREDIT.unpack(frame.body)[0])
        elif type_ == _ERROR and frame.stream == 0:
            self.close("The caller reported a fault of the connection.")
        else:
            raise ProtocolViolationError(f"A caller does not send {FrameType(type_).name} frames.")

    def on_lost(self, why: str) -> None:
        self.stop_calls("cancelled")

    def stop_calls(self, why: Literal["cancelled", "closing"]) -> None:
        """Cancel every call of this connection."""
        for call in list(self._calls.values()):
            call.wake()
            call.stop(why)

    @property
    def has_calls(self) -> bool:
        """Whether a call of this connection has not been answered."""
        return bool(self._calls)

    def say_goodbye(self) -> asyncio.Future[None]:
        """Tell the caller that no call will begin here any more; the future is done when it has closed its end."""
        self.send(_ERROR, 0, problem_bytes(StaleGenerationError("The agent's process ends.", hint="Ask the directory again.")))
        return self.lost

    def check_size(self, body: bytes, what: str) -> None:
        """Raise PayloadTooLargeError when `body` is more than the caller takes in one frame."""
        if not isinstance(body, bytes):
            raise TypeError(f"the {what} is {type(body).__name__}, not bytes")
        limit = min(self._max_frame, self._peer_max_frame)
        if len(body) > limit:
            raise PayloadTooLargeError(f"The {what} has {len(body)} bytes; one frame carries {limit}.")

    def refuse(self, stream: int, error: SovereignError) -> None:
        """End a call, or one that never began, with an error."""
        self.send(_ERROR, stream, problem_bytes(error))

    def _on_call(self, frame: Frame) -> None:
        server, stream, body = self._server, frame.stream, frame.body
        if stream == 0 or stream in self._calls:
            raise ProtocolViolationError(f"A call on stream {stream} came, which is in use.")
        start = CALL_HEAD.size
        if len(body) < start:
            raise ProtocolViolationError("A CALL frame is too short for its head.")
        deadline_ms, grant_size, credit = CALL_HEAD.unpack_from(body)
        if len(body) < start + grant_size or credit > MAX_CREDIT:
            raise ProtocolViolationError("A CALL frame's head does not fit its body.")
        if server._draining:
            self.refuse(stream, StaleGenerationError("The agent's process is draining.", hint="Ask the directory again."))
            return
        if len(self._calls) >= server._max_streams:
            full = OverloadedError(f"The agent runs {server._max_streams} calls of this connection, which is its bound.")
            full.spent = (0, 0)
            self.refuse(stream, full)
            return
        payload = body[start + grant_size :]
        grant = body[start : start + grant_size]
        caller = server._verifier.check(grant, payload, deadline_ms=deadline_ms, flags=frame.flags)
        if isinstance(caller, Refusal):
            self.refuse(stream, caller.error())
            if server._on_refusal is not None:
                server._on_refusal(caller)
            return
        deadline_s = deadline_ms / 1000
        streams = bool(frame.flags & FLAG_STREAM)
        call = IncomingCall(self, stream, payload, caller=caller, stream=streams, deadline_s=deadline_s, credit=credit)
        self._calls[stream] = call
        call.timer = self._loop.call_later(deadline_s, call.stop, "deadline")
        task = call.task = self._loop.create_task(self._run(call))
        server._tasks.add(task)

    async def _run(self, call: IncomingCall) -> None:
        call.started = True
        try:
            error = await self._answer(call)
        finally:
            if call.timer is not None:
                call.timer.cancel()
            del self._calls[call.id]
            if call.task is not None:
                self._server._tasks.discard(call.task)
        if error is not None:
            self.refuse(call.id, error)

    async def _answer(self, call: IncomingCall) -> SovereignError | None:
        """Run the handler and send its result; returns the error that ends the call otherwise."""
        try:
            if not call.why:
                call.spent = None
                result = await self._server._handler(call)
                if not call.why:
                    self.check_size(result, "result")
                    await self.room()
                    self.send(_RESULT, call.id, result)
                    return None
        except asyncio.CancelledError:
            # Nobody waits for this task: the cancellation ends here, as the call's outcome.
            pass
        except SovereignError as e:
            return e
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of native code is no Exception, and must not leave the caller waiting either
            log.exception("The handler of a call failed.")
            return InternalError("The agent could not answer because of a fault of the platform; its log has the reason.")
        error = _stopped(call)
        error.spent = call.spent
        return error


def _stopped(call: IncomingCall) -> SovereignError:
    if call.why == "deadline":
        return DeadlineExceededError(f"The call was stopped after its {call.deadline_s:g} s.")
    if call.why == "closing":
        return AgentLostError("The agent's process ended before the call was answered.", hint="Ask the directory again.")
    return CancelledCallError("The call was cancelled.")
