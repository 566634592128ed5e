"""LangGraph's own client over connections that break: what goes on, what is cancelled, and what it hears again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from tests.langgraph_world import HELLO, World, heard, langgraph_world


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with langgraph_world(tmp_path, monkeypatch) as world:
        yield world


@asynccontextmanager
async def listening(world: World) -> AsyncIterator[tuple[LangGraphClient, str]]:
    """Yield the SDK and a URL of the application behind a real socket, where connections can break."""
    server = uvicorn.Server(uvicorn.Config(world.app, port=0, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/langgraph"
        try:
            async with get_client(url=url, api_key=world.key) as sdk:
                yield sdk, url
        finally:
            server.should_exit = True
            await serving


async def test_a_client_that_leaves_ends_its_run_unless_it_said_otherwise(world: World) -> None:
    """on_disconnect, and stream_resumable which means that it comes back; a joined one as the joining client says."""
    thread = await world.thread()
    async with listening(world) as (sdk, _):
        for more, goes_on in (
            ({}, False),
            ({"on_disconnect": "continue"}, True),
            ({"stream_resumable": True}, True),
            ({"stream_resumable": True, "on_disconnect": "cancel"}, False),
        ):
            world.agent.may_go_on.clear()
            stream = sdk.runs.stream(thread, "planner", input=HELLO, **more)
            run_id = (await anext(stream)).data["run_id"]
            await stream.aclose()
            if goes_on:
                world.agent.may_go_on.set()
            await world.sdk.runs.join(thread, run_id)
            ended = await world.sdk.runs.get(thread, run_id)
            assert ended["status"] == ("success" if goes_on else "interrupted"), more
        world.agent.may_go_on.clear()
        run = await sdk.runs.create(thread, "planner", input=HELLO)
        for leaving in (False, True):
            joined = sdk.runs.join_stream(thread, run["run_id"], cancel_on_disconnect=leaving)
            await anext(joined)
            await joined.aclose()
        await sdk.runs.join(thread, run["run_id"])
        assert (await sdk.runs.get(thread, run["run_id"]))["status"] == "interrupted"


async def test_a_broken_connection_loses_no_event_and_doubles_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK comes back by itself to where Location says, from the last event that it saw."""
    monkeypatch.setattr("langgraph_sdk._async.http._reconnect_delay", lambda *_, **__: 0.0)
    thread = await world.thread()
    world.agent.may_go_on.clear()
    async with listening(world) as (sdk, _):
        modes: Any = ["messages-tuple", "values"]
        seen = []
        async for part in sdk.runs.stream(thread, "planner", input=HELLO, stream_mode=modes, stream_resumable=True):
            seen.append(part)
            if part.event == "messages" and part.data[0]["content"] == "well ":
                for connection in sdk.http.client._transport._pool.connections:  # type: ignore[attr-defined]
                    await connection._connection._network_stream.aclose()
                world.agent.may_go_on.set()
    (run,) = await world.sdk.runs.list(thread)
    assert seen == await heard(world.sdk.runs.join_stream(thread, run["run_id"]))
    assert [part.event for part in seen] == ["metadata", "values", "messages", "messages", "values", "end"]
