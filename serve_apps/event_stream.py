"""A streamed answer on its way to a client: it ends, and gives back what it holds, whether or not the client reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

# A client that reads gets the end of its call, or the word that its deadline passed, well within this.
GRACE_S = 2.0


class Last(bytes):
    """The last events of a stream, which are sent as its end."""


OnTape = Callable[[bytes | None], Awaitable[None]]


class _Tape:
    """What `on_tape` is called with, once, however the events end; also when they never begin."""

    def __init__(self, on_tape: OnTape, most: int) -> None:
        self._on_tape = on_tape
        self._most = most
        self._over = False

    async def events(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        tape = bytearray()
        async with aclosing(events):
            async for event in events:
                if len(tape) <= self._most:
                    tape += event
                yield event
        await self.end(bytes(tape))

    async def end(self, tape: bytes | None) -> None:
        if not self._over:
            self._over = True
            await self._on_tape(tape)


class EventStream(Response):
    """Server-sent events that are sent until a call's deadline and GRACE_S after it, and never longer.

    A client that does not read holds the sending back, not the events, so it is the sending that is bounded. What it got
    then is cut off within the answer, which HTTP tells from an end. One that leaves ends it at once.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], *, deadline_at: float, on_end: Callable[[], Awaitable[None]]) -> None:
        """Take the events, the deadline by the loop's clock, and what is awaited once at the end, however it comes."""
        self.status_code, self.media_type, self.background = 200, "text/event-stream", None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events
        self._ends_at = deadline_at + GRACE_S
        self._on_end = on_end
        self._kept = ExitStack()
        self._tape: _Tape | None = None

    def tape(self, on_tape: OnTape, *, most: int) -> None:
        """Call `on_tape` with all bytes of the events, up to about `most`, when they have ended, before the client hears of it.

        It is called with None when they were cut off.
        """
        self._tape = _Tape(on_tape, most)
        self._events = self._tape.events(self._events)

    def keep(self, kept: ExitStack) -> None:
        """Close `kept` when the stream has ended."""
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, as ASGI has it."""
        bound = asyncio.timeout_at(self._ends_at)
        try:
            async with bound, _until_gone(receive):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                last = b""
                async for events in self._events:
                    if isinstance(events, Last):
                        last = events
                    else:
                        await send({"type": "http.response.body", "body": events, "more_body": True})
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            if not bound.expired():
                raise
            log.warning("a client did not read its stream by the call's deadline; it was cut off")
        finally:
            # What is held back in the middle of a sending is closed by nobody else.
            with self._kept:
                await self._events.aclose()
                if self._tape is not None:
                    await self._tape.end(None)
                await self._on_end()


@asynccontextmanager
async def _until_gone(receive: Receive) -> AsyncIterator[None]:
    """Leave what is done within when the client goes away. One task beside it: a task group costs a stream twice as much."""
    task, gone = cast("asyncio.Task[Any]", asyncio.current_task()), asyncio.ensure_future(_disconnected(receive))
    cancelled_before, within, left = task.cancelling(), True, False

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal left
        if within:
            left = True
            task.cancel()

    gone.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else's cancelling goes on; that of a client that left ends here.
        if not left or task.uncancel() > cancelled_before:
            raise
    finally:
        within = False
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
