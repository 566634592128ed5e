"""The real MCP client, of both of the protocol's eras, against a gateway in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from cluster.identity.roles import Scope
from serve_apps.app import Application
from tests.answering import Agents, answering


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Application, Agents]]:
    async with answering(tmp_path) as (app, agents):
        yield app, agents


@asynccontextmanager
async def connected(app: Application, mode: str) -> AsyncIterator[Client]:
    """Yield a client that begins as it would with any server, or by the handshake of before."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), headers={"authorization": "Bearer x"})
    async with http, Client(streamable_http_client("http://gateway/mcp", http_client=http), mode=mode) as client:
        yield client


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_agents_are_tools(served: tuple[Application, Agents], mode: str) -> None:
    """They are listed with what they take and give, called, and answer with their usage."""
    async with connected(served[0], mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.input_schema["required"]) == ("planner", ["text"])
        result = await client.call_tool("planner", {"text": script({"say": "good day"})})
        assert not result.is_error
        assert result.content[0].text == "good day"  # type: ignore[union-attr]  # it is text
        assert result.structured_content["text"] == "good day"
        assert result.structured_content["output_tokens"] == 2


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_comes_piece_by_piece(served: tuple[Application, Agents], mode: str) -> None:
    """To a client that asks for it; the whole answer is its last message all the same."""
    pieces: list[str | None] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        pieces.append(message)

    async with connected(served[0], mode) as client:
        asked = {"text": script({"stream": ["a ", "b ", "c"]})}
        result = await client.call_tool("planner", asked, progress_callback=note)
        assert result.content[0].text == "a b c"  # type: ignore[union-attr]  # it is text
    assert "".join(p or "" for p in pieces) == "a b c"


async def test_a_conversation_goes_on(served: tuple[Application, Agents]) -> None:
    """Under the id that the caller chose."""
    async with connected(served[0], "auto") as client:
        for _ in range(2):
            result = await client.call_tool("planner", {"text": script({"say": "again"}), "conversation_id": "talk-1"})
            assert not result.is_error


async def test_an_agent_that_fails_says_so_to_the_model(served: tuple[Application, Agents]) -> None:
    """As the tool's result, which the calling model can read; what is no tool is an error of the protocol."""
    async with connected(served[0], "auto") as client:
        result = await client.call_tool("planner", {"text": script({"fail": "no such luck"})})
        assert result.is_error
        for name in ("nobody", "../planner", "Planner"):
            with pytest.raises(MCPError, match="There is no tool"):
                await client.call_tool(name, {"text": "hello"})


async def post(app: Application, content: bytes | str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        sent = {"content-type": "application/json", "authorization": "Bearer x"} | headers
        return await http.post("http://gateway/mcp", content=content, headers=sent)


def rpc(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (f"[{rpc('ping')}]", -32600),
        ('{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
        ('{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
        ('{"jsonrpc": "2.0", "id": 1, "result": {}}', -32600),
        (rpc("resources/list"), -32601),
        (rpc("tools/call", name="planner", arguments={}), -32602),
        (rpc("tools/call", name="planner", arguments={"text": "x", "system": "obey"}), -32602),
        (rpc("tools/call", name="planner"), -32602),
        (rpc("tools/list", cursor="../x"), -32602),
    ],
)
async def test_what_is_no_message_is_an_error_that_says_why(served: tuple[Application, Agents], body: str, code: int) -> None:
    """In JSON-RPC's shape, with its code, naming the field."""
    answer = (await post(served[0], body)).json()
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]


async def test_a_revision_that_is_not_spoken_is_named_with_those_that_are(served: tuple[Application, Agents]) -> None:
    """So that the client can choose another."""
    answer = await post(served[0], rpc("tools/list"), **{"mcp-protocol-version": "2031-01-01"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32022)
    assert "2026-07-28" in answer.json()["error"]["data"]["supported"]


async def test_a_page_of_another_place_is_refused(served: tuple[Application, Agents]) -> None:
    """Control: McpRoutes._check_origin, against names that lead elsewhere first and here later."""
    answer = await post(served[0], rpc("tools/list"), origin="https://evil.example")
    assert answer.status_code == 403


async def test_who_may_only_look_calls_nothing(served: tuple[Application, Agents]) -> None:
    """Control: the second scope that a call needs."""
    app, agents = served
    agents.scopes = frozenset({Scope.AGENTS_LIST})
    assert (await post(app, rpc("tools/list"))).status_code == 200
    assert (await post(app, rpc("tools/call", name="planner", arguments={"text": "x"}))).status_code == 403


async def test_a_notification_is_taken_and_not_answered(served: tuple[Application, Agents]) -> None:
    """202 and nothing more, also for one of a call that has ended."""
    for method, params in (("notifications/initialized", {}), ("notifications/cancelled", {"requestId": 1})):
        answer = await post(served[0], json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))
        assert (answer.status_code, answer.content) == (202, b"")
