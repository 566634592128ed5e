"""The channel against peers that lie: forged grants, broken frames, floods and pickles. One of them loses, nobody else."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.channel import FLAG_STREAM, FrameType, IncomingCall, encode
from actors.channel.call_stream import WINDOW_CHUNKS
from actors.channel.frames import CALL_HEAD, CREDIT, HELLO, MAGIC, MAX_CREDIT, VERSION
from cluster.errors import AgentLostError, GrantRefusedError, InternalError, SovereignError, StaleGenerationError
from cluster.identity.grants import Refusal, SessionGrant, derive_agent_key
from tests.contract.channel.peers import (
    GREETING,
    PATIENCE_S,
    Agent,
    RawPeer,
    a_false_agent,
    a_grant,
    an_agent,
    soon,
    until,
)
from tests.sizes import soak


class Counted:
    """An echo that counts what reached it."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, call: IncomingCall) -> bytes:
        self.calls += 1
        if call.stream:
            await call.send_chunk(call.payload)
        return call.payload


async def still_serves(agent: Agent) -> None:
    """An honest caller is answered, and nothing of the others is left running."""
    client = await agent.client()
    assert await client.call(b"honest", grant=agent.grant, deadline_s=PATIENCE_S) == b"honest"
    await client.close()
    await until(lambda: agent.server.running == 0)


def signed(grant: SessionGrant, payload: bytes = b"hello", *, deadline_ms: int = 30_000, flags: int = 0) -> bytes:
    return grant.sign(payload, deadline_ms=deadline_ms, flags=flags)


# Grants


async def test_no_frame_without_a_valid_grant_reaches_the_handler() -> None:
    """Every kind of bad grant ends its own call, is told to on_refusal, and leaves the connection. Control: _on_call's check."""
    handler = Counted()
    async with an_agent(handler) as agent:
        g = agent.grant
        client = await agent.client()
        peer = await agent.peer()
        older = a_grant(key=derive_agent_key(b"m" * 32, "acme", "planner", 2), generation=2)
        cases: list[tuple[bytes, bytes, int, int, Refusal]] = [
            (b"", b"hello", 30_000, 0, Refusal.MALFORMED),
            (b"x" * 200, b"hello", 30_000, 0, Refusal.MALFORMED),
            (signed(a_grant(key=b"k" * 32)), b"hello", 30_000, 0, Refusal.FORGED),
            (signed(g), b"swapped", 30_000, 0, Refusal.FORGED),
            (signed(g), b"hello", 60_000, 0, Refusal.FORGED),
            (signed(g), b"hello", 30_000, FLAG_STREAM, Refusal.FORGED),
            (signed(a_grant(agent="other")), b"hello", 30_000, 0, Refusal.OTHER_AGENT),
            (signed(a_grant(scope="status")), b"hello", 30_000, 0, Refusal.SCOPE),
            (signed(a_grant(ttl_s=-1.0)), b"hello", 30_000, 0, Refusal.EXPIRED),
            (signed(older), b"hello", 30_000, 0, Refusal.OTHER_GENERATION),
        ]
        for stream, (grant, payload, deadline_ms, flags, _) in enumerate(cases, start=1):
            peer.call(stream, payload, grant, deadline_ms=deadline_ms, flags=flags)
        for stream, (*_, refusal) in enumerate(cases, start=1):
            frame = await peer.frame()
            assert (frame.type, frame.stream) == (FrameType.ERROR, stream)
            wanted = b"stale_generation" if refusal is Refusal.OTHER_GENERATION else b"grant_refused"
            assert wanted in frame.body, refusal
        assert agent.refusals == [case[-1] for case in cases]
        with pytest.raises(GrantRefusedError):
            await client.call(b"x", grant=a_grant(key=b"k" * 32), deadline_s=60)
        with pytest.raises(StaleGenerationError):
            await client.call(b"x", grant=older, deadline_s=60)
        assert handler.calls == 0
        assert await client.call(b"x", grant=g, deadline_s=60) == b"x"


async def test_threat_14_a_recorded_frame_does_not_work_twice() -> None:
    """Replayed on the same connection, on another one, or on a stream of its own: refused. Control: the shared verifier."""
    handler = Counted()
    async with an_agent(handler) as agent:
        recorded = signed(agent.grant)
        first, second = await agent.peer(), await agent.peer()
        first.call(1, b"hello", recorded)
        assert (await first.frame()).type == FrameType.RESULT
        for peer, stream in ((first, 1), (first, 2), (second, 1)):
            peer.call(stream, b"hello", recorded)
            assert (await peer.frame()).type == FrameType.ERROR
        assert handler.calls == 1
        assert agent.refusals == [Refusal.REPLAYED] * 3


# Broken frames at the agent


def call_body(grant: bytes, payload: bytes = b"hello", *, credit: int = 0, deadline_ms: int = 30_000) -> bytes:
    return CALL_HEAD.pack(deadline_ms, len(grant), credit) + grant + payload


BROKEN: dict[str, Callable[[SessionGrant], bytes]] = {
    "a 4 GiB frame": lambda _: b"\xff\xff\xff\xff\2\0\0\0\0\0\0\1",
    "an unknown type": lambda _: encode(11, 1),
    "a second HELLO": lambda _: GREETING,
    "a RESULT from a caller": lambda _: encode(FrameType.RESULT, 1, b"x"),
    "a CHUNK from a caller": lambda _: encode(FrameType.CHUNK, 1, b"x"),
    "an ERROR on a call": lambda _: encode(FrameType.ERROR, 1, b"x"),
    "a call without a head": lambda _: encode(FrameType.CALL, 1, b"short"),
    "a grant longer than its frame": lambda _: encode(FrameType.CALL, 1, CALL_HEAD.pack(1, 9999, 0) + b"x"),
    "a call on stream 0": lambda g: encode(FrameType.CALL, 0, call_body(signed(g))),
    "a stream in use": lambda g: encode(FrameType.CALL, 5, call_body(signed(g))) * 2,
    "credit without bound": lambda g: encode(FrameType.CALL, 5, call_body(signed(g), credit=MAX_CREDIT + 1)),
    "more credit than there is": lambda g: (
        encode(FrameType.CALL, 5, call_body(signed(g, flags=1), credit=MAX_CREDIT), 1)
        + encode(FrameType.CREDIT, 5, CREDIT.pack(1))
    ),
    "a short CREDIT": lambda _: encode(FrameType.CREDIT, 5, b"\1"),
    "another protocol": lambda _: b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_broken_frame_ends_its_connection_with_a_reason(fault: str) -> None:
    """The peer hears why on stream 0 and is cut off; its calls are stopped; every other connection goes on."""
    async with an_agent(Counted()) as agent:
        honest = await agent.client()
        peer = await agent.peer()
        peer.send(BROKEN[fault](agent.grant))
        last = (await peer.rest())[-1]
        assert (last.type, last.stream) == (FrameType.ERROR, 0)
        assert b"detail" in last.body
        assert await honest.call(b"x", grant=agent.grant, deadline_s=60) == b"x"
        await still_serves(agent)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode(FrameType.HELLO, 0, HELLO.pack(b"EVIL", VERSION, 1, 1)),
        encode(FrameType.HELLO, 0, HELLO.pack(MAGIC, VERSION + 1, 1, 1)),
        encode(FrameType.HELLO, 0, b""),
        encode(FrameType.CALL, 1, b"\0" * 14),
        encode(FrameType.CALL, 1, b"\0" * 100_000)[:12],
        encode(FrameType.CALL, 1, HELLO.pack(MAGIC, VERSION, 1 << 20, 64)),
        encode(FrameType.PING, 0),
    ],
    ids=["HTTP", "magic", "version", "empty", "CALL first", "head of a large CALL", "HELLO's words in a CALL", "PING first"],
)
async def test_who_does_not_say_hello_gets_nowhere(greeting: bytes) -> None:
    """Before a HELLO of this version nothing else is read, and no memory is kept for it."""
    handler = Counted()
    async with an_agent(handler) as agent:
        peer = await agent.peer(greeting)
        (refusal,) = await peer.rest()
        assert (refusal.type, refusal.stream) == (FrameType.ERROR, 0)
        assert handler.calls == 0
        await still_serves(agent)


async def test_a_flood_of_pings_from_who_does_not_read_is_not_answered_without_bound() -> None:
    """Who stops to read is read from no more, so its answers cannot pile up. Control: _ServerConnection.pause_writing."""
    async with an_agent(Counted(), ping_interval_s=1000) as agent:
        peer = await agent.peer()
        (connection,) = agent.server._connections
        peer.pause()
        flood = encode(FrameType.PING, 0, b"12345678") * 5000
        assert connection._transport is not None
        for _ in range(1000):
            peer.send(flood)
            await still_serves(agent)
            if connection._stalled:
                break
        assert connection._stalled
        for _ in range(20):
            peer.send(flood)
            await asyncio.sleep(0)
        assert connection._transport.get_write_buffer_size() + connection._out_bytes < 2 << 20
        assert not connection._transport.is_reading()


# Broken frames at the caller


def answer(kind: FrameType, stream: int, body: bytes = b"") -> bytes:
    return encode(kind, stream, body)


LIES: dict[str, Callable[[int], bytes]] = {
    "a huge frame": lambda s: b"\xff\xff\xff\xff\4\0\0\0" + s.to_bytes(4, "big"),
    "a stream that is not open": lambda s: answer(FrameType.RESULT, s + 1),
    "a second result": lambda s: answer(FrameType.RESULT, s) * 2,
    "chunks without credit": lambda s: answer(FrameType.CHUNK, s, b"x") * (WINDOW_CHUNKS + 1),
    "a CALL": lambda s: answer(FrameType.CALL, s, b"x" * 20),
    "a second HELLO": lambda _: GREETING,
    "a CANCEL": lambda s: answer(FrameType.CANCEL, s),
    "an error of the connection": lambda _: answer(FrameType.ERROR, 0, b"\x80"),
    "noise": lambda _: b"noise" * 100,
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_agent_that_breaks_the_protocol_is_left(lie: str) -> None:
    """The caller closes the connection, and what was under way ends with one of the platform's errors at once."""

    async def behave(peer: RawPeer) -> None:
        streams = [(await peer.frame()).stream for _ in range(2)]
        peer.send(LIES[lie](max(streams)))
        await peer.rest()

    async with a_false_agent(behave) as client:
        plain = asyncio.ensure_future(client.call(b"", grant=a_grant(), deadline_s=600))
        await asyncio.sleep(0)
        stream = client.stream(b"", grant=a_grant(), deadline_s=600)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(AgentLostError):
                await plain
            await until(lambda: client.closed)
            try:
                async for _ in stream:
                    pass
            except SovereignError:
                pass
        assert client.pending == 0


async def test_chunks_for_a_plain_call_are_a_fault() -> None:
    """Who asked for one result is not sent pieces."""

    async def behave(peer: RawPeer) -> None:
        peer.send(answer(FrameType.CHUNK, (await peer.frame()).stream, b"x"))
        await peer.rest()

    async with a_false_agent(behave) as client:
        with pytest.raises(AgentLostError):
            await client.call(b"", grant=a_grant(), deadline_s=600)


# Pickles


class Bomb:
    """A value that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


async def test_threat_42_a_pickle_is_never_unpickled(tmp_path: Path) -> None:
    """A pickle in any body, either way, stays bytes or is an error; the code in it never runs."""
    touched = tmp_path / "touched"
    bomb = pickle.dumps(Bomb(touched))
    pickle.loads(bomb)
    assert touched.exists(), "the bomb works where somebody unpickles"
    touched.unlink()

    async with an_agent(Counted()) as agent:
        client = await agent.client()
        assert await client.call(bomb, grant=agent.grant, deadline_s=60) == bomb
        stream = client.stream(bomb, grant=agent.grant, deadline_s=60)
        assert [c async for c in stream] == [bomb]
        for kind in FrameType:
            peer = await agent.peer()
            peer.send(encode(kind, 1, bomb))
            assert (await peer.frame()).type == FrameType.ERROR
        peer = await agent.peer()
        peer.call(1, b"hello", bomb)
        assert (await peer.frame()).type == FrameType.ERROR
        peer = await agent.peer(bomb)
        await peer.rest()
        await still_serves(agent)

    async def behave(peer: RawPeer) -> None:
        peer.send(answer(FrameType.RESULT, (await peer.frame()).stream, bomb))
        peer.send(answer(FrameType.ERROR, (await peer.frame()).stream, bomb))
        stream = (await peer.frame()).stream
        peer.send(answer(FrameType.CHUNK, stream, bomb) + answer(FrameType.RESULT, stream, bomb))
        peer.send(answer(FrameType.ERROR, 0, bomb))
        await peer.rest()

    async with a_false_agent(behave) as client:
        assert await client.call(b"", grant=a_grant(), deadline_s=60) == bomb
        with pytest.raises(InternalError):
            await client.call(b"", grant=a_grant(), deadline_s=60)
        stream = client.stream(b"", grant=a_grant(), deadline_s=60)
        assert [c async for c in stream] == [bomb]
        assert stream.result == bomb
        await until(lambda: client.closed)
    assert not touched.exists()


# Fuzz


def honest_session(grant: SessionGrant) -> list[bytes]:
    """The frames of a caller that does a bit of everything."""
    frames = [GREETING]
    for i in range(1, 5):
        flags = i % 2
        frames.append(encode(FrameType.CALL, i, call_body(signed(grant, flags=flags), credit=flags * 3), flags))
    frames += [encode(FrameType.CREDIT, 1, CREDIT.pack(2)), encode(FrameType.CANCEL, 3), encode(FrameType.PING, 0, b"12345678")]
    return frames


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 2000), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 2000), st.integers(1, 60)),
        st.tuples(st.just("insert"), st.integers(0, 2000), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("repeat"), st.integers(0, 20), st.integers(1, 3)),
        st.tuples(st.just("drop"), st.integers(0, 20), st.integers(1, 3)),
        st.tuples(st.just("swap"), st.integers(0, 20), st.integers(0, 20)),
    ),
    max_size=6,
)


def mutated(frames: list[bytes], mutations: list[tuple[str, int, int]]) -> bytes:
    frames = list(frames)
    for kind, at, n in mutations:
        if kind == "repeat" and frames:
            frames[at % len(frames)] *= n + 1
        elif kind == "drop" and frames:
            del frames[at % len(frames)]
        elif kind == "swap" and frames:
            a, b = at % len(frames), n % len(frames)
            frames[a], frames[b] = frames[b], frames[a]
    data = bytearray(b"".join(frames))
    for kind, at, n in mutations:
        place = at % (len(data) + 1)
        if kind == "flip" and place < len(data):
            data[place] ^= n
        elif kind == "cut":
            del data[place : place + n]
        elif kind == "insert":
            data[place:place] = n.to_bytes(4, "big")
    return bytes(data)


async def _send_and_leave(agent: Agent, data: bytes) -> None:
    peer = await agent.peer(b"")
    peer.send(data)
    peer.writer.write_eof()
    for frame in await peer.rest():
        assert frame.type in (FrameType.HELLO, FrameType.CHUNK, FrameType.RESULT, FrameType.ERROR, FrameType.PONG)
    await peer.close()
    await still_serves(agent)


async def _with_agent(use: Callable[[Agent, Counted], Awaitable[None]]) -> None:
    handler = Counted()
    async with an_agent(handler) as agent:
        await use(agent, handler)


@given(mutations=MUTATIONS)
@settings(max_examples=soak(150, 20_000), deadline=None)
def test_a_mutated_session_harms_nobody_else(mutations: list[tuple[str, int, int]]) -> None:
    """An honest session with any bytes flipped, cut, inserted, or frames repeated and swapped: the agent goes on."""

    async def use(agent: Agent, handler: Counted) -> None:
        await _send_and_leave(agent, mutated(honest_session(agent.grant), mutations))
        assert handler.calls <= 5, "each true grant works once, however often its frame was sent"

    asyncio.run(_with_agent(use))


@given(data=st.binary(max_size=2000), greet=st.booleans())
@settings(max_examples=soak(100, 20_000), deadline=None)
def test_random_bytes_never_reach_the_handler(data: bytes, greet: bool) -> None:
    """Noise, also after a true HELLO, is refused without a call of the handler."""

    async def use(agent: Agent, handler: Counted) -> None:
        await _send_and_leave(agent, (GREETING if greet else b"") + data)
        assert handler.calls == 1, "only the honest call"

    asyncio.run(_with_agent(use))


@given(mutations=MUTATIONS)
@settings(max_examples=soak(150, 20_000), deadline=None)
def test_a_mutated_answer_ends_every_call_with_an_answer_or_an_error(mutations: list[tuple[str, int, int]]) -> None:
    """Whatever an agent sends, a caller gets bytes or one of the platform's errors, and never waits for ever."""

    async def behave(peer: RawPeer) -> None:
        streams = [(await peer.frame()).stream for _ in range(3)]
        frames = [answer(FrameType.RESULT, streams[0], b"plain"), answer(FrameType.PONG, 0)]
        frames += [answer(FrameType.CHUNK, streams[2], b"chunk")] * 3
        frames += [
            answer(FrameType.ERROR, streams[1], b"\x81\xa4code\xaaoverloaded"),
            answer(FrameType.RESULT, streams[2], b"end"),
        ]
        peer.send(mutated(frames, mutations))

    async def use() -> None:
        async def read() -> bytes:
            stream = client.stream(b"", grant=a_grant(), deadline_s=600)
            async for _ in stream:
                pass
            return stream.result

        async with a_false_agent(behave) as client:
            calls = [client.call(b"", grant=a_grant(), deadline_s=600) for _ in range(2)]
            async with asyncio.timeout(PATIENCE_S):
                ends = await asyncio.gather(*calls, read(), return_exceptions=True)
            assert all(isinstance(e, bytes | SovereignError) for e in ends), ends

    asyncio.run(use())


async def test_a_handler_that_a_caller_floods_keeps_its_place_for_others() -> None:
    """A caller at its bound of calls takes nothing from another connection's."""
    gate = asyncio.Event()
    started = asyncio.Event()

    async def handler(call: IncomingCall) -> bytes:
        if call.payload == b"hold":
            started.set()
            await gate.wait()
        return call.payload

    async with an_agent(handler, max_streams=4) as agent:
        flooder = await agent.peer()
        for i in range(1, 200):
            flooder.call(i, b"hold", signed(agent.grant, b"hold"))
        await soon(started)
        client = await agent.client()
        assert await client.call(b"x", grant=agent.grant, deadline_s=60) == b"x"
        assert agent.server.running == 4
        gate.set()
