"""A streamed call as the caller sees it: chunks, then the result."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from actors.channel.connection import ProtocolViolationError
from actors.channel.frames import CREDIT, FrameType
from actors.channel.unheard import GivenUp, note_given_up
from cluster.errors import CancelledCallError, SovereignError

# Chunks of one stream that may be on their way or unread; half of them are granted again at a time.
WINDOW_CHUNKS = 32


class Receiver(Protocol):
    """The part of a connection that a stream grants credit and is given up by."""

    def send(self, type_: int, stream: int, body: bytes = b"", flags: int = 0) -> None:
        """Queue a frame."""
        ...

    def give_up(self, stream: int) -> GivenUp | None:
        """Tell the agent to stop the call; returns what it says of its end."""
        ...

    async def stopped(self, stream: int) -> None:
        """Wait until the agent has."""
        ...


class CallStream:
    """The chunks of a streamed call, as an async iterator; `result` holds the end of the answer after the last chunk.

    Leaving early stops the agent's work: by `aclose`, by the end of `async with`, or by cancelling a task that waits here.
    """

    def __init__(self, connection: Receiver, id_: int, deadline_at: float) -> None:
        self._connection = connection
        self._id = id_
        # By the loop's clock.
        self.deadline_at = deadline_at
        self._chunks: deque[bytes] = deque()
        # Chunks that the agent may still send; below zero it broke the protocol.
        self._credit = WINDOW_CHUNKS
        self._taken = 0
        self._result: bytes | None = None
        self._error: SovereignError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        # Where its end is heard of, once it was given up.
        self.given_up: GivenUp | None = None

    @property
    def result(self) -> bytes:
        """The body of the RESULT frame; raises RuntimeError before the stream has ended well."""
        if self._result is None:
            raise RuntimeError("the stream has not ended")
        return self._result

    def __aiter__(self) -> CallStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._result is not None:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as left:
                await self.aclose()
                note_given_up(left, self.given_up)
                raise
        chunk = self._chunks.popleft()
        self._take(1)
        return chunk

    def take_waiting(self) -> list[bytes]:
        """Return the chunks that have come and nobody read, without waiting for any."""
        waiting = [*self._chunks]
        self._chunks.clear()
        self._take(len(waiting))
        return waiting

    @property
    def ended(self) -> bool:
        """Whether all of it was read, its result too."""
        return self._result is not None and not self._chunks

    def _take(self, count: int) -> None:
        self._taken += count
        if self._taken * 2 >= WINDOW_CHUNKS and self._open:
            self._credit += self._taken
            self._connection.send(FrameType.CREDIT, self._id, CREDIT.pack(self._taken))
            self._taken = 0

    async def aclose(self) -> None:
        """Give the call up: the agent stops its work. Does nothing after the end."""
        if self._open:
            self._error = CancelledCallError("The stream was closed before its end.")
            self.given_up = self._connection.give_up(self._id)

    async def stopped(self) -> None:
        """Wait until the agent's work has ended after this end gave it up, or the agent is lost; else return at once."""
        await self._connection.stopped(self._id)

    async def __aenter__(self) -> CallStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def _open(self) -> bool:
        return self._result is None and self._error is None

    def on_chunk(self, chunk: bytes) -> None:
        """Keep a chunk until it is read."""
        self._credit -= 1
        if self._credit < 0:
            raise ProtocolViolationError("The agent sent more chunks than it had credit for.")
        self._chunks.append(chunk)
        self._wake()

    def on_result(self, body: bytes) -> None:
        """End well."""
        self._result = body
        self._wake()

    def on_error(self, error: SovereignError) -> None:
        """End with an error, which comes after the chunks that were sent before it."""
        if self._open:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
