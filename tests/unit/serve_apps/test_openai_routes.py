"""A streamed call is given up when its client leaves, in whatever moment that is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Message

from actors.invoker import Invoker
from cluster.clock import SystemClock
from cluster.errors import CancelledCallError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange
from serve_apps.openai_routes import OpenAIRoutes
from tests.gates import open_gate

BODY = json.dumps({"model": "planner", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()


class Collaborators:
    """An authenticator that knows everyone, and a directory whose streams open as a test says."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.given_up = 0
        # Cancelled in the moment in which the stream opens.
        self.caller: asyncio.Task[Any] | None = None

    def authenticate(self, _: str) -> Principal:
        return Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset(Scope))

    async def stream(
        self, *_: object, deadline_s: float, conversation: str | None = None, until_stopped: bool = False
    ) -> Collaborators:
        self.waiting.set()
        if self.caller is not None:
            self.caller.cancel()
            return self
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up += 1
        raise AssertionError

    async def aclose(self) -> None:
        self.given_up += 1


@pytest.fixture
def collaborators() -> Collaborators:
    return Collaborators()


@pytest.fixture
def edge(tmp_path: Path, collaborators: Collaborators) -> Edge:
    fake = cast("Any", collaborators)
    return Edge(
        Settings(home=tmp_path, queue_limit=1),
        authenticator=fake,
        governance=fake,
        invoker=Invoker(fake, places=1, gate=open_gate(tmp_path)),
        journal=fake,
        gate=open_gate(tmp_path),
        metrics=Metrics(tmp_path, "gateway"),
        clock=SystemClock(),
    )


def call(edge: Edge, gone: asyncio.Event) -> asyncio.Task[Any]:
    """Start a streamed call of a client that leaves when `gone` is set."""
    messages: list[Message] = [{"type": "http.request", "body": BODY}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    request = Request(
        {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}, receive
    )
    exchange = Exchange(request_id="r", trace_id="", authorization="")
    return asyncio.create_task(OpenAIRoutes(edge).chat_completions(request, exchange))


async def test_a_client_that_leaves_before_the_first_piece_is_seen(edge: Edge, collaborators: Collaborators) -> None:
    """The gateway watches the client itself: the opening is cancelled, and the place is free."""
    gone = asyncio.Event()
    task = call(edge, gone)
    async with asyncio.timeout(30):
        await collaborators.waiting.wait()
    gone.set()
    done, _ = await asyncio.wait((task,), timeout=30)
    assert done, "nobody saw that the client left"
    with pytest.raises(CancelledCallError):
        await task
    assert collaborators.given_up == 1
    assert edge.invoker.calls == 0


async def test_a_stream_that_opens_as_its_client_leaves_is_given_up(edge: Edge, collaborators: Collaborators) -> None:
    """Cancelled in the moment in which the first piece came, the call does not run on unheard."""
    task = collaborators.caller = call(edge, asyncio.Event())
    with pytest.raises(CancelledCallError):
        await task
    assert collaborators.given_up == 1
    assert edge.invoker.calls == 0
