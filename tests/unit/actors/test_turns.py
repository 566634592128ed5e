"""Places in an event loop that is late, and in one that is not."""

from __future__ import annotations

import asyncio
import time

from actors.turns import LOOK_S, Place, Turns
from cluster.limits.pace import FEWEST, LATE_US

MOST = 64


async def hold_up(for_s: float) -> None:
    """Keep the loop from everything else for so long, as work on a call does."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        pass
    await asyncio.sleep(0)


async def test_places_shrink_while_the_loop_is_late_and_come_back_though_no_call_ends() -> None:
    """Control: `Turns._looked`. Calls that began go on; those that waited begin once the loop bears them."""
    turns = Turns(MOST, MOST)
    held = [await turns.enter("greedy", 30) for _ in range(MOST // 2)]
    other = await turns.enter("other", 30)
    for _ in range(20):
        work = [asyncio.ensure_future(hold_up(LATE_US / 1e6)) for _ in range(2)]
        turns.leave(other)
        other = await turns.enter("other", 30)
        await asyncio.gather(*work)
        await hold_up(LOOK_S)
    waits = [asyncio.ensure_future(turns.enter("greedy", 30)) for _ in range(4)]
    await asyncio.sleep(0)
    assert not any(w.done() for w in waits), "there is no place for them while the loop is late"
    held += await asyncio.gather(*waits)
    for place in [*held, other]:
        turns.leave(place)
    assert turns.calls == 0
    assert all(isinstance(place, Place) for place in held)


async def test_a_tenant_alone_is_never_cut_down() -> None:
    """A loop that is late by its own work has places for all of it: there is nobody to wait behind it."""
    turns = Turns(FEWEST * 4, FEWEST)
    held = []
    for _ in range(FEWEST * 3):
        work = asyncio.ensure_future(hold_up(LATE_US / 1e6))
        held.append(await asyncio.wait_for(turns.enter("alone", 30), 1))
        await work
    assert len(held) == FEWEST * 3
