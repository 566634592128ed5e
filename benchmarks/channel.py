"""What the channel costs: 1 KB echo between two processes, with grants, deadlines and handler tasks, against bare frames.

The last line is one JSON object: {"c1": {"calls_per_s", "p50_ms"}, "c64": {…}, "raw_c64_per_s", "ratio"}.
*Raw* is the same framing, decoder, write coalescing and event loop, without grants, deadlines, bounds or handler tasks.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from actors.channel import ChannelClient, ChannelServer, Frame, FrameType, IncomingCall
from actors.channel.connection import Connection
from cluster.identity.grants import GrantVerifier, derive_agent_key, issue_ticket

KEY = derive_agent_key(b"benchmark" * 4, "bench", "echo", 1)
BODY = os.urandom(1024)
ROUNDS = 5
SECONDS = 1.0


class RawServer(Connection):
    """Echoes each CALL as a RESULT, and does nothing else."""

    def on_hello(self, max_frame: int, max_streams: int) -> None:
        self.say_hello(1000)

    def on_frame(self, frame: Frame) -> None:
        self.send(FrameType.RESULT, frame.stream, frame.body)

    def on_lost(self, why: str) -> None:
        pass


class RawClient(Connection):
    """One future a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._next = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.say_hello(1000)

    def on_hello(self, max_frame: int, max_streams: int) -> None:
        self.ready.set_result(None)

    def on_frame(self, frame: Frame) -> None:
        self._waiting.pop(frame.stream).set_result(frame.body)

    def on_lost(self, why: str) -> None:
        pass

    async def call(self) -> bytes:
        self._next += 1
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[self._next] = future
        self.send(FrameType.CALL, self._next, BODY)
        return await future


async def echo(call: IncomingCall) -> bytes:
    return call.payload


async def serve() -> None:
    verifier = GrantVerifier(KEY, tenant="bench", agent="echo", generation=1)
    server = ChannelServer(echo, verifier=verifier)
    raw = await asyncio.get_running_loop().create_server(RawServer, "127.0.0.1", 0)
    print(await server.start("127.0.0.1"), raw.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the parent


async def measure(call: Callable[[], Awaitable[bytes]], callers: int) -> tuple[float, float]:
    """Return calls per second and the median latency in milliseconds."""
    latencies: list[float] = []
    until = time.perf_counter() + SECONDS

    async def caller() -> None:
        now = time.perf_counter()
        while now < until:
            await call()
            done = time.perf_counter()
            latencies.append(done - now)
            now = done

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - started
    return len(latencies) / elapsed, statistics.median(latencies) * 1000


async def load(port: int, raw_port: int) -> dict[str, Any]:
    grant = issue_ticket(KEY, caller="bench", tenant="bench", agent="echo", generation=1, ttl_s=3600)
    client = await ChannelClient.connect("127.0.0.1", port)
    _, raw = await asyncio.get_running_loop().create_connection(RawClient, "127.0.0.1", raw_port)
    await raw.ready

    async def governed() -> bytes:
        return await client.call(BODY, grant=grant, deadline_s=60.0)

    await measure(governed, 64)  # warm
    seen: dict[str, list[tuple[float, float]]] = {"c1": [], "c16": [], "c64": [], "raw": []}
    for n in range(ROUNDS):
        pair = [("c64", governed, 64), ("raw", raw.call, 64)]
        for name, call, callers in (pair if n % 2 else pair[::-1]) + [("c1", governed, 1), ("c16", governed, 16)]:
            seen[name].append(await measure(call, callers))
        print({k: [round(rate) for rate, _ in v] for k, v in seen.items()}, flush=True)
    await client.close()
    raw.close("done")
    ratio = statistics.median(g[0] / r[0] for g, r in zip(seen["c64"], seen["raw"], strict=True))
    result: dict[str, Any] = {
        name: {
            "calls_per_s": round(statistics.median(rate for rate, _ in seen[name])),
            "p50_ms": round(statistics.median(p50 for _, p50 in seen[name]), 4),
        }
        for name in ("c1", "c16", "c64")
    }
    return result | {"raw_c64_per_s": round(statistics.median(rate for rate, _ in seen["raw"])), "ratio": round(ratio, 3)}


async def main() -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.channel", "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port, raw_port = map(int, (await server.stdout.readline()).split())
        print(json.dumps(await load(port, raw_port)))
    finally:
        server.stdin.close()
        await server.wait()


if __name__ == "__main__":
    uvloop.run(serve() if sys.argv[1:] == ["serve"] else main())
