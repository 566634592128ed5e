"""A stream of events ends and gives back what it holds, whatever the client and the sending do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from serve_apps.event_stream import GRACE_S, EventStream, Last

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Stream:
    """An EventStream of two events, and what became of it."""

    def __init__(self, deadline_in_s: float) -> None:
        self.closed = 0
        self.ended = 0
        deadline_at = asyncio.get_running_loop().time() + deadline_in_s
        self.response = EventStream(self._events(), deadline_at=deadline_at, on_end=self._end)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b"two"
        finally:
            self.closed += 1

    async def _end(self) -> None:
        self.ended += 1


async def connected() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("stalls_at", ["http.response.start", "http.response.body"])
async def test_a_sending_that_stalls_is_ended_at_the_deadline(stalls_at: str) -> None:
    """Stalled before or after its first event, the stream is closed and its place is given back once."""
    stream = Stream(deadline_in_s=-GRACE_S + 0.05)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == stalls_at:
            await asyncio.Event().wait()

    async with asyncio.timeout(30):
        await stream.response(SCOPE, connected, send)
    assert stream.ended == 1
    assert stream.closed == (stalls_at == "http.response.body")  # what never began has nothing to close
    assert sent[-1]["type"] == stalls_at
    assert sent[-1].get("more_body", True), "what was cut off must not look whole"


async def test_a_client_that_leaves_while_the_sending_stalls_ends_it_at_once() -> None:
    """Events that are held back in the middle of a sending are closed too."""
    stream = Stream(deadline_in_s=1000)
    stalled = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            stalled.set()
            await asyncio.Event().wait()

    async def receive() -> Message:
        await stalled.wait()
        return {"type": "http.disconnect"}

    async with asyncio.timeout(30):
        await stream.response(SCOPE, receive, send)
    assert (stream.closed, stream.ended) == (1, 1)


async def test_a_sending_that_fails_is_no_deadline() -> None:
    """An error of the sending is raised, also one that looks like a deadline, and the place is given back."""
    stream = Stream(deadline_in_s=1000)

    async def send(message: Message) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await stream.response(SCOPE, connected, send)
    assert (stream.closed, stream.ended) == (0, 1)


async def test_a_stream_that_is_read_comes_whole() -> None:
    """Within its time a stream is sent to its end."""
    stream = Stream(deadline_in_s=1000)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await stream.response(SCOPE, connected, send)
    assert [m.get("body") for m in sent] == [None, b"one", b"two", b""]
    assert (stream.closed, stream.ended) == (1, 1)


async def test_the_last_events_are_the_end() -> None:
    """They leave with the end itself, once everything before it was done."""
    sent: list[Message] = []
    done: list[int] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield Last(b"two")
        done.append(len(sent))

    async def send(message: Message) -> None:
        sent.append(message)

    async def end() -> None:
        done.append(len(sent))

    stream = EventStream(events(), deadline_at=asyncio.get_running_loop().time() + 1000, on_end=end)
    await stream(SCOPE, connected, send)
    assert [(m.get("body"), m.get("more_body")) for m in sent[1:]] == [(b"one", True), (b"two", False)]
    assert done == [2, 3]


async def test_somebody_elses_cancelling_goes_on() -> None:
    """Only that of a client that left ends here."""
    stream = Stream(deadline_in_s=1000)
    stalled = asyncio.Event()

    async def send(message: Message) -> None:
        stalled.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stream.response(SCOPE, connected, send))
    await stalled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.ended == 1
