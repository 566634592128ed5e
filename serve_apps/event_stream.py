"""A streamed answer on its way to a client: it ends, and gives back what it holds, whether or not the client reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

# A client that reads gets the end of its call, or the word that its deadline passed, well within this.
GRACE_S = 2.0


OnTape = Callable[[bytes | None], Awaitable[None]]


async def _taped(events: AsyncGenerator[bytes], on_tape: OnTape, most: int) -> AsyncGenerator[bytes]:
    tape = bytearray()
    whole = False
    try:
        async with aclosing(events):
            async for event in events:
                if len(tape) <= most:
                    tape += event
                yield event
        whole = True
    finally:
        await on_tape(bytes(tape) if whole else None)


class EventStream(StreamingResponse):
    """Server-sent events that are sent until a call's deadline and GRACE_S after it, and never longer.

    A client that does not read holds the sending back, not the events, so it is the sending that is bounded. What it got
    then is cut off within the answer, which HTTP tells from an end.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], *, deadline_at: float, on_end: Callable[[], Awaitable[None]]) -> None:
        """Take the events, the deadline by the loop's clock, and what is awaited once at the end, however it comes."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._ends_at = deadline_at + GRACE_S
        self._on_end = on_end
        self._kept = ExitStack()

    def tape(self, on_tape: OnTape, *, most: int) -> None:
        """Call `on_tape` with all bytes of the events, up to about `most`, when they have ended, before the client hears of it.

        It is called with None when they were cut off.
        """
        self._events = self.body_iterator = _taped(self._events, on_tape, most)

    def keep(self, kept: ExitStack) -> None:
        """Close `kept` when the stream has ended."""
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, as ASGI has it."""
        bound = asyncio.timeout_at(self._ends_at)
        try:
            async with bound:
                await super().__call__(scope, receive, send)
        except TimeoutError:
            if not bound.expired():
                raise
            log.warning("a client did not read its stream by the call's deadline; it was cut off")
        finally:
            # What is held back in the middle of a sending is closed by nobody else.
            with self._kept:
                await self._events.aclose()
                await self._on_end()
