"""A call as the agent's handler sees it, with the credit that its chunks wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from actors.channel.connection import ProtocolViolationError
from actors.channel.frames import MAX_CREDIT, FrameType
from cluster.errors import CancelledCallError, InvalidRequestError
from cluster.identity.grants import Ticket

# The caller gave up or is gone; its time is over; the agent's process ends.
Why = Literal["", "cancelled", "deadline", "closing"]


class Sender(Protocol):
    """The part of a connection that a call sends its chunks by."""

    closed: bool

    @property
    def has_room(self) -> bool:
        """Whether a frame may be queued now."""
        ...

    async def room(self) -> None:
        """Wait until one may, or the connection is gone."""
        ...

    def send(self, type_: int, stream: int, body: bytes = b"", flags: int = 0) -> None:
        """Queue a frame."""
        ...

    def check_size(self, body: bytes, what: str) -> None:
        """Raise PayloadTooLargeError when `body` fits no frame."""
        ...


class IncomingCall:
    """One call as the handler sees it: its grant holds, and its task is cancelled when the caller or the time is gone."""

    __slots__ = (
        "_connection",
        "_credit",
        "_credited",
        "caller",
        "deadline_s",
        "id",
        "payload",
        "spent",
        "started",
        "stream",
        "task",
        "timer",
        "why",
    )

    def __init__(
        self,
        connection: Sender,
        id_: int,
        payload: bytes,
        *,
        caller: Ticket,
        stream: bool,
        deadline_s: float,
        credit: int,
    ) -> None:
        # For the handler. What was asked, opaque to the channel.
        self.payload = payload
        # The verified ticket: who asks, for which tenant, in which scope.
        self.caller = caller
        # Whether the caller takes chunks.
        self.stream = stream
        # Seconds that were left when the call arrived.
        self.deadline_s = deadline_s
        # What the call had spent when it was ended, if its handler says so; nothing before that begins.
        self.spent: tuple[int, int] | None = (0, 0)
        self._connection = connection
        self._credit = credit
        self._credited: asyncio.Future[None] | None = None
        # For the connection.
        self.id = id_
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.started = False
        # Why it was told to stop; empty while nobody did. It is what the caller is told, so the handler may go by it.
        self.why: Why = ""

    async def send_chunk(self, chunk: bytes) -> None:
        """Send one piece of the answer, as soon as the caller has room for it.

        Raises InvalidRequestError when the caller did not ask for a stream, PayloadTooLargeError when the chunk is larger
        than a frame may be, CancelledCallError when the connection is gone.
        """
        if not self.stream:
            raise InvalidRequestError("This call takes one result, not chunks.", hint="Look at IncomingCall.stream first.")
        connection = self._connection
        connection.check_size(chunk, "chunk")
        while (not self._credit or not connection.has_room) and not connection.closed:
            if not self._credit:
                if self._credited is None or self._credited.done():
                    self._credited = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._credited)
            else:
                await connection.room()
        if connection.closed:
            raise CancelledCallError("The caller's connection is gone.")
        self._credit -= 1
        connection.send(FrameType.CHUNK, self.id, chunk)

    def check_result(self, result: bytes) -> None:
        """Raise PayloadTooLargeError when `result` is more than the caller takes, for who must know before it returns."""
        self._connection.check_size(result, "result")

    def add_credit(self, chunks: int) -> None:
        """Take the caller's credit for `chunks` more; raises ProtocolViolationError when it is over the bound."""
        self._credit += chunks
        if self._credit > MAX_CREDIT:
            raise ProtocolViolationError(f"A call has credit for more than {MAX_CREDIT} chunks.")
        self.wake()

    def wake(self) -> None:
        """Let a sender that waits for credit look again."""
        if self._credited is not None and not self._credited.done():
            self._credited.set_result(None)

    def stop(self, why: Literal["cancelled", "deadline", "closing"]) -> None:
        """Cancel the handler's task, once."""
        # The first reason counts, and one cancellation is enough: a second would interrupt the handler's clean-up.
        if not self.why:
            self.why = why
            # A task that is cancelled before its first step runs no line of its own, not even the clean-up.
            if self.started and self.task is not None:
                self.task.cancel()


Handler = Callable[[IncomingCall], Awaitable[bytes]]
