"""A gateway for LangGraph's own client, and an agent that answers from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient

from actors.directory import Directory
from actors.wire import CallAnswer, CallOrder, Usage
from cluster.errors import AgentFailedError
from cluster.settings import Settings
from tests.gateways import gateway

AGENT = {"agent_id": "planner", "capabilities": ["conversation"], "model": "scripted:echo"}
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
ANSWER = "well done"


class Agent:
    """What the directory leads to: it says two words, holds on while it is told to, or fails."""

    def __init__(self) -> None:
        self.orders: list[CallOrder] = []
        self.fails = False
        self.asked = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.stopped = 0

    async def stream(self, principal: Any, agent_id: str, payload: bytes, **_: Any) -> Stream:
        self.orders.append(CallOrder.from_bytes(payload))
        self.asked.set()
        return Stream(self)


class Stream:
    result = CallAnswer("", "stop", "scripted:echo", Usage(tokens_input_uncached=1, tokens_output=2)).to_bytes()

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"well "
        if self._agent.fails:
            raise AgentFailedError("It raised.")
        await self._agent.may_go_on.wait()
        yield b"done"
        self._ended = True

    async def aclose(self) -> None:
        self._agent.stopped += not self._ended

    async def stopped(self) -> None:
        """Nothing runs."""


class World:
    def __init__(self, agent: Agent, app: Any, key: str) -> None:
        self.agent = agent
        self.app = app
        self.key = key
        self.sdk = self.client({"x-api-key": key})

    def client(self, headers: dict[str, str]) -> LangGraphClient:
        base = "http://gateway/langgraph"
        return LangGraphClient(httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=base, headers=headers))

    async def thread(self) -> str:
        return str((await self.sdk.threads.create())["thread_id"])


@asynccontextmanager
async def langgraph_world(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Yield a gateway with one agent, `planner`."""
    agent, settings = Agent(), Settings.load(home=home)
    monkeypatch.setattr(Directory, "stream", agent.stream)
    async with gateway(settings, monkeypatch) as app:
        world = World(agent, app, (settings.secret_dir / "api-key").read_text().strip())
        (await world.sdk.http.client.post("http://gateway/api/v1/agents", json=AGENT)).raise_for_status()
        yield world
        await world.sdk.aclose()


def said(values: Any) -> list[tuple[str, str]]:
    return [(message["type"], message["content"]) for message in values["messages"]]


async def heard(stream: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in stream]
