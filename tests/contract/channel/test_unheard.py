"""What becomes of a reservation whose call ends without an answer: it is free again as soon as anybody can know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from actors.channel import FrameType, IncomingCall, encode
from actors.channel.connection import error_of
from actors.channel.frames import CALL_HEAD
from actors.directory import Directory
from actors.invoker import Invocation, Invoker
from actors.leases import Leases, Reservation
from cluster.agents.budget import Budget
from cluster.errors import OverloadedError, PayloadTooLargeError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from tests.contract.channel.peers import Agent, an_agent, until

WHO = Principal(TenantId("acme"), ProjectId("default"), "key:test", frozenset())


class Books:
    """Leases that reserve whatever is asked for, and note what each reservation came to; None when nobody knows yet."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    async def reserve(self, invocation: Invocation) -> Reservation:
        return Reservation("r1", Budget(100, 0), "acme.planner", 0, {"tenant.acme.total.tokens": 100}, {})

    def settle(self, reservation: Reservation, spent: tuple[int, int] | None) -> None:
        self.said.put_nowait(spent)

    async def heard(self) -> tuple[int, int] | None:
        async with asyncio.timeout(10):
            while (spent := await self.said.get()) is None:
                pass
        return spent


class Governance:
    """Says where the agent answers, or keeps whoever asks waiting."""

    def __init__(self, agent: Agent | None) -> None:
        self.asked = asyncio.Event()
        self._agent = agent

    async def call(self, *_: Any, **__: Any) -> Any:
        self.asked.set()
        if self._agent is None:
            await asyncio.Event().wait()
        agent = cast("Agent", self._agent)
        resolved = {"host": "127.0.0.1", "port": agent.port, "generation": 1, "expires_us": 1 << 62, "alone": True}
        return {"replicas": [resolved | {"ticket": agent.grant.ticket_bytes.hex(), "session_key": agent.grant.session_key.hex()}]}


def asked(text: str = "hello") -> Invocation:
    return Invocation(WHO, "planner", [{"role": "user", "content": text}], 30.0)


async def by_call(invoker: Invoker, invocation: Invocation) -> None:
    await invoker.run(invocation)


async def by_stream(invoker: Invoker, invocation: Invocation) -> None:
    stream = await invoker.open(invocation)
    async for _ in stream:
        pass


Way = Callable[[Invoker, Invocation], Awaitable[None]]
WAYS = pytest.mark.parametrize("way", [by_call, by_stream])


def invoker_of(governance: Governance, books: Books) -> Invoker:
    return Invoker(Directory(cast("Any", governance)), places=8, leases=cast("Leases", books))


@WAYS
async def test_who_leaves_while_the_agent_wakes_has_spent_nothing(way: Way) -> None:
    """Control: note_unsent in Directory._link. Else its budget and its place in `concurrency` were held past its deadline."""
    books, governance = Books(), Governance(None)
    leaving = asyncio.ensure_future(way(invoker_of(governance, books), asked()))
    await governance.asked.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    assert books.said.get_nowait() == (0, 0)


@WAYS
async def test_what_the_channel_does_not_take_has_spent_nothing(way: Way) -> None:
    """Controls: note_unsent in ChannelClient, and what the server says of a call that it has no room for."""

    async def forever(_: IncomingCall) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with an_agent(forever, max_frame=4_096, max_streams=1) as agent:
        books = Books()
        invoker = invoker_of(Governance(agent), books)
        with pytest.raises(PayloadTooLargeError):
            await way(invoker, asked("x" * 8_192))
        assert books.said.get_nowait() == (0, 0)
        first = asyncio.ensure_future(invoker.run(asked()))
        await until(lambda: bool(agent.server._tasks))
        with pytest.raises(OverloadedError):
            await way(invoker, asked())
        assert books.said.get_nowait() == (0, 0)
        first.cancel()
        await asyncio.wait((first,))
        await invoker._directory.aclose()


@WAYS
async def test_a_call_that_is_given_up_is_settled_by_its_agents_word(way: Way) -> None:
    """Control: Invoker._heard. It comes with the end of the call, long before anybody has read a journal."""
    began = asyncio.Event()

    async def handler(call: IncomingCall) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            call.spent = (7, 0)
        return b""

    async with an_agent(handler) as agent:
        books = Books()
        leaving = asyncio.ensure_future(way(invoker_of(Governance(agent), books), asked()))
        await began.wait()
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert await books.heard() == (7, 0)


async def test_a_call_that_never_began_at_its_agent_has_spent_nothing() -> None:
    """It comes together with its cancelling, and no journal of any agent will ever say a word of it."""

    async def handler(_: IncomingCall) -> bytes:
        raise AssertionError("it began")

    async with an_agent(handler) as agent:
        peer = await agent.peer()
        payload, deadline_ms = b"hello", 30_000
        grant = agent.grant.sign(payload, deadline_ms=deadline_ms, flags=0)
        frames = encode(FrameType.CALL, 1, CALL_HEAD.pack(deadline_ms, len(grant), 0) + grant + payload)
        peer.send(frames + encode(FrameType.CANCEL, 1))
        assert error_of((await peer.frame()).body).spent == (0, 0)
