"""The two ends that the channel's tests are made of: an honest agent and its callers, and peers that send what they like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from actors.channel import ChannelClient, ChannelServer, Frame, FrameDecoder, FrameType, Handler, encode
from actors.channel.frames import CALL_HEAD, HELLO, MAGIC, VERSION
from cluster.identity.grants import GrantVerifier, Refusal, SessionGrant, derive_agent_key, issue_ticket

KEY = derive_agent_key(b"m" * 32, "acme", "planner", 1)
# Long enough never to be reached on a busy machine by what is expected to happen.
PATIENCE_S = 30.0
GREETING = encode(FrameType.HELLO, 0, HELLO.pack(MAGIC, VERSION, 1 << 20, 64))


def a_grant(**changes: Any) -> SessionGrant:
    words: dict[str, Any] = {"caller": "gateway", "tenant": "acme", "agent": "planner", "generation": 1, "ttl_s": 3600.0}
    return issue_ticket(changes.pop("key", KEY), **(words | changes))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0)


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


class Agent:
    """A served handler, what it was refused, and a way to open connections to it."""

    def __init__(self, handler: Handler, options: dict[str, Any]) -> None:
        self.refusals: list[Refusal] = []
        self.verifier = GrantVerifier(KEY, tenant="acme", agent="planner", generation=1)
        self.server = ChannelServer(handler, verifier=self.verifier, on_refusal=self.refusals.append, **options)
        self.port = 0
        self.grant = a_grant()
        self._clients: list[ChannelClient] = []
        self._peers: list[RawPeer] = []

    async def client(self, **options: Any) -> ChannelClient:
        client = await ChannelClient.connect("127.0.0.1", self.port, **options)
        self._clients.append(client)
        return client

    async def peer(self, greeting: bytes = GREETING) -> RawPeer:
        """Open a bare connection; it has said `greeting`, and the server's HELLO is read if it was a true one."""
        peer = RawPeer(*await asyncio.open_connection("127.0.0.1", self.port))
        self._peers.append(peer)
        if greeting:
            peer.send(greeting)
        if greeting == GREETING:
            assert (await peer.frame()).type == FrameType.HELLO
        return peer

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        for peer in self._peers:
            await peer.close()
        await self.server.close()


@asynccontextmanager
async def an_agent(handler: Handler, **options: Any) -> AsyncIterator[Agent]:
    agent = Agent(handler, options)
    agent.port = await agent.server.start("127.0.0.1")
    try:
        yield agent
    finally:
        await agent.close()


class RawPeer:
    """A connection that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._decoder = FrameDecoder(1 << 30)
        self._frames: list[Frame] = []

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(
        self, stream: int, payload: bytes, grant: bytes, *, deadline_ms: int = 30_000, flags: int = 0, credit: int = 0
    ) -> None:
        head = CALL_HEAD.pack(deadline_ms, len(grant), credit)
        self.send(encode(FrameType.CALL, stream, head + grant + payload, flags))

    async def frame(self) -> Frame:
        """Return the next frame that is no PING; raises EOFError at the end of the connection."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                while not self._frames:
                    try:
                        data = await self._reader.read(1 << 16)
                    except ConnectionError:
                        data = b""
                    if not data:
                        raise EOFError
                    self._frames += self._decoder.feed(data)
            frame = self._frames.pop(0)
            if frame.type != FrameType.PING:
                return frame

    def pause(self) -> None:
        """Stop to read from the socket."""
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def resume(self) -> None:
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    async def rest(self) -> list[Frame]:
        """Return every frame until the other side closes."""
        frames = []
        try:
            while True:
                frames.append(await self.frame())
        except EOFError:
            return frames

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def a_false_agent(behave: Callable[[RawPeer], Awaitable[None]], **options: Any) -> AsyncIterator[ChannelClient]:
    """Yield a client whose agent says HELLO and then behaves as told; its connection ends with `behave`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        try:
            assert (await peer.frame()).type == FrameType.HELLO
            peer.send(GREETING)
            await behave(peer)
        except (EOFError, ConnectionError):
            pass
        finally:
            await peer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = None
    try:
        client = await ChannelClient.connect("127.0.0.1", listener.sockets[0].getsockname()[1], **options)
        yield client
    finally:
        if client is not None:
            await client.close()
        listener.close()
        await listener.wait_closed()
