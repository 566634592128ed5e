"""Turns to start a process: bounded, and fair between tenants."""

from __future__ import annotations

import asyncio

import pytest

from actors.wake_queue import WakeQueue
from cluster.errors import UnavailableError


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Starts:
    """Starts that hold their turn until they are told to end, in the order in which they got it."""

    def __init__(self, queue: WakeQueue) -> None:
        self.queue = queue
        self.began: list[str] = []
        self.ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def _start(self, name: str) -> None:
        async with self.queue.turn(name[0]):
            self.began.append(name)
            end = asyncio.Event()
            self.ends.append(end)
            await end.wait()

    async def ask(self, *names: str) -> None:
        self.tasks += [asyncio.ensure_future(self._start(n)) for n in names]
        await settle()

    async def end_one(self) -> None:
        self.ends.pop(0).set()
        await settle()


async def test_no_more_start_at_once_than_allowed() -> None:
    """The third waits until one of the two has started."""
    starts = Starts(WakeQueue(at_once=2, waiting=10))
    await starts.ask("a1", "a2", "a3")
    assert starts.began == ["a1", "a2"]
    await starts.end_one()
    assert starts.began == ["a1", "a2", "a3"]


async def test_tenants_take_turns() -> None:
    """One tenant's crowd comes first, and the other's only agent does not wait behind all of it."""
    starts = Starts(WakeQueue(at_once=1, waiting=100))
    await starts.ask(*(f"a{n}" for n in range(5)), "b0", "b1")
    for _ in range(6):
        await starts.end_one()
    assert starts.began == ["a0", "a1", "b0", "a2", "b1", "a3", "a4"]


async def test_too_many_are_refused_at_once() -> None:
    """Beyond the bound the answer comes now, and says when to come again."""
    queue = WakeQueue(at_once=1, waiting=1)
    starts = Starts(queue)
    await starts.ask("a1", "a2")
    with pytest.raises(UnavailableError) as refused:
        async with queue.turn("b"):
            pass
    assert refused.value.retry_after_s == 1
    await starts.end_one()
    await starts.end_one()
    async with queue.turn("b"):
        pass


async def test_who_gives_up_waiting_loses_nobody_a_turn() -> None:
    """Cancelled while waiting, or at the very moment the turn comes: the next one still gets it."""
    starts = Starts(WakeQueue(at_once=1, waiting=10))
    await starts.ask("a1", "a2", "a3", "a4")
    starts.tasks[1].cancel()
    await settle()
    starts.ends.pop(0).set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starts.tasks[2].cancel()  # its turn is on the way, or just there
    await settle()
    while starts.ends:
        await starts.end_one()
    assert starts.began[-1] == "a4"
    async with starts.queue.turn("b"):
        pass


async def test_who_gives_up_waiting_is_forgotten() -> None:
    """However many come and go while one start takes long, the queue holds those who wait and nobody else."""
    queue = WakeQueue(at_once=1, waiting=2)

    async def wait() -> None:
        async with queue.turn("acme"):
            pass

    async with queue.turn("acme"):
        for _ in range(5):
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert sum(map(len, queue._waiting.values())) == 0
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):  # the turn was passed on before it heard of its end
        await waiting
    await asyncio.wait_for(wait(), 10)
