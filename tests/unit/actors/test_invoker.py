"""The one road to an agent: places, turns between tenants, and what becomes of a call that waits."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from actors.invoker import Invocation, Invoker
from actors.wire import CallAnswer, CallOrder
from cluster.errors import DeadlineExceededError, OverloadedError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal

PLACES, WAITING = 8, 8


class Agents:
    """A directory whose agents answer when they are told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.orders: list[CallOrder] = []
        self.tenants: list[str] = []

    async def call(self, principal: Principal, agent_id: str, payload: bytes, **more: Any) -> bytes:
        self.orders.append(CallOrder.from_bytes(payload))
        self.tenants.append(str(principal.tenant))
        await self.go_on.wait()
        return CallAnswer("ok", "stop", "scripted:ok").to_bytes()


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture
def invoker(agents: Agents) -> Invoker:
    return Invoker(cast("Any", agents), places=PLACES, waiting=WAITING)


def invocation(tenant: str = "greedy", deadline_s: float = 30) -> Invocation:
    who = Principal(TenantId(tenant), ProjectId("default"), "key:test", frozenset())
    return Invocation(who, "agent", [{"role": "user", "content": "hi"}], deadline_s)


async def begin(invoker: Invoker, count: int, tenant: str = "greedy") -> list[asyncio.Task[CallAnswer]]:
    """Start calls, and return when each has come as far as it can for now."""
    calls = [asyncio.ensure_future(invoker.run(invocation(tenant))) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return calls


async def test_threat_25_one_tenants_burst_leaves_places_for_others(invoker: Invoker, agents: Agents) -> None:
    """Control: FairQueue.enter. What the one has too much waits or is refused, and the other's call begins at once."""
    calls = await begin(invoker, 50)
    assert agents.tenants == ["greedy"] * 6
    refused = [call for call in calls if call.done()]
    assert len(refused) == 50 - 6 - 6
    assert all(isinstance(call.exception(), OverloadedError) for call in refused)
    calls += await begin(invoker, 1, "other")
    assert agents.tenants[-1] == "other"
    assert invoker.load == 6 + 1 + 6
    agents.go_on.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, CallAnswer) for answer in done) == 13
    assert invoker.calls == 0


async def test_a_call_that_waited_says_for_how_long(invoker: Invoker, agents: Agents) -> None:
    """Its queue time is in its order, and so in its usage row."""
    calls = await begin(invoker, 7)
    agents.go_on.set()
    await asyncio.gather(*calls)
    assert len(agents.orders) == 7
    assert agents.orders[-1].queue_us > 0


async def test_a_wait_ends_with_the_calls_deadline(invoker: Invoker) -> None:
    """And with the caller's patience; either way nobody waits any more."""
    running = await begin(invoker, 6)
    with pytest.raises(DeadlineExceededError, match="waited for its turn"):
        await invoker.run(invocation(deadline_s=0.01))
    (impatient,) = await begin(invoker, 1)
    assert invoker.calls == 7
    impatient.cancel()
    await asyncio.wait([impatient])
    assert impatient.cancelled()
    assert invoker.calls == 6
    for call in running:
        call.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert invoker.calls == 0


async def test_a_turn_that_comes_as_its_caller_leaves_goes_to_the_next(invoker: Invoker, agents: Agents) -> None:
    """Control: what `_wait` does when its ticket was called already. The place is not lost."""
    first = await begin(invoker, 6)
    leaving, staying = await begin(invoker, 2)
    first[0].cancel()
    # The place is free when the cancelled call is run, and that is before the one that leaves is.
    leaving.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert leaving.cancelled()
    assert len(agents.orders) == 7
    agents.go_on.set()
    await staying
    await asyncio.gather(*first, return_exceptions=True)
    assert invoker.calls == 0
