"""Turns of a conversation: one at a time, in order, bounded, forgotten afterwards."""

from __future__ import annotations

import asyncio

import pytest

from cluster.agents.turns import Turns
from cluster.errors import OverloadedError


async def test_turns_of_one_conversation_run_in_order_of_arrival() -> None:
    """Each turn ends before the next begins, first come first served; another conversation does not wait."""
    turns, log = Turns(), list[str]()

    async def turn(thread: str, name: str) -> None:
        async with turns.turn(thread):
            log.append(f"+{name}")
            for _ in range(5):
                await asyncio.sleep(0)
            log.append(f"-{name}")

    await asyncio.gather(*(turn("a", str(n)) for n in range(4)), turn("b", "other"))
    assert [entry for entry in log if "other" not in entry] == ["+0", "-0", "+1", "-1", "+2", "-2", "+3", "-3"]
    assert log.index("+other") < log.index("-0")
    assert len(turns) == 0


async def test_waiting_turns_are_bounded() -> None:
    """One turn too many is refused at once, and room comes back when a turn ends."""
    turns, go = Turns(max_waiting=2), asyncio.Event()

    async def turn() -> None:
        async with turns.turn("a"):
            await go.wait()

    tasks = [asyncio.create_task(turn()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2 turns already wait"):
        await turn()
    go.set()
    await asyncio.gather(*tasks)
    await turn()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    """A caller that goes away while it waits neither runs nor blocks the next."""
    turns, go, ran = Turns(), asyncio.Event(), list[str]()

    async def turn(name: str) -> None:
        async with turns.turn("a"):
            await go.wait()
            ran.append(name)

    tasks = [asyncio.create_task(turn(n)) for n in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ran == ["a", "c"]
    assert len(turns) == 0
