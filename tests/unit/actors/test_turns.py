"""Who begins when, in one event loop."""

from __future__ import annotations

import asyncio

from actors.turns import A_ROUND, Place, Turns

MANY = 40


async def test_threat_25_what_comes_later_does_not_wait_behind_a_whole_crowd() -> None:
    """Control: the calls that begin in a round of the loop. The other's call begins with the next one or two."""
    turns = Turns(4 * MANY, 4 * MANY)
    begun: list[str] = []

    async def call(tenant: str) -> Place:
        place = await turns.enter(tenant, 30)
        begun.append(tenant)
        return place

    crowd = [asyncio.ensure_future(call("greedy")) for _ in range(MANY)]
    await asyncio.sleep(0)
    assert begun == ["greedy"] * A_ROUND
    other = asyncio.ensure_future(call("other"))
    places = await asyncio.gather(*crowd, other)
    assert begun.index("other") <= 3 * A_ROUND
    assert len(begun) == MANY + 1, "all begin without that any has ended"
    for place in places:
        turns.leave(place)
    assert turns.calls == 0


async def test_a_tenant_alone_begins_a_few_in_each_round() -> None:
    """Nothing is waited for but the round."""
    turns = Turns(MANY, 1)
    waits = [asyncio.ensure_future(turns.enter("alone", 30)) for _ in range(MANY // 2)]
    rounds = 0
    while not all(wait.done() for wait in waits):
        await asyncio.sleep(0)
        rounds += 1
    assert MANY // 2 // A_ROUND <= rounds <= MANY // 2 // A_ROUND + 3
