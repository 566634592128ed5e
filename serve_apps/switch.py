"""What Serve takes for the gateway's application: it passes requests on to the true one, and hears of its begin and its end."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.runs import Runs


class Switch:
    """Serve builds the ASGI application before the replica has its settings; ours is put in its place afterwards."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        # What begins and ends with the gateway.
        self.runs: Runs | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the gateway's life, as ASGI has it."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, self.runs)
        elif self.app is not None:
            await self.app(scope, receive, send)


async def _lifespan(receive: Receive, send: Send, runs: Runs | None) -> None:
    while True:
        message = await receive()
        if runs is not None and message["type"] == "lifespan.startup":
            runs.begin()
        elif runs is not None:
            await runs.drain()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
