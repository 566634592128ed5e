"""MCP's real client over the whole road: HTTP, gateway, channel, agent, lake."""

from __future__ import annotations

import asyncio
import json

import anyio
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.servers.cluster import RunningCluster, eventually


def connect(cluster: RunningCluster, http: httpx2.AsyncClient) -> Client:
    return Client(streamable_http_client(f"{cluster.state.http_url}/mcp", http_client=http))


async def test_an_agent_is_called_as_a_tool_and_a_cancelled_call_stops(cluster: RunningCluster) -> None:
    """Each call has one row in the lake; what the client gives up ends at the agent, and is billed for what ran."""
    cluster.register("tool-1")
    async with httpx2.AsyncClient(headers=cluster.headers, timeout=60) as http, connect(cluster, http) as client:
        assert "tool-1" in {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("tool-1", {"text": json.dumps({"script": [{"say": "good day"}]})})
        assert result.structured_content["text"] == "good day"
        before = cluster.journal_bytes("tool-1")
        endless = {"text": json.dumps({"script": [{"sleep_s": 100}, {"say": "never"}]})}
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "tool-1", endless)
            await asyncio.to_thread(eventually, lambda: cluster.journal_bytes("tool-1") > before)
            group.cancel_scope.cancel()
    rows = eventually(lambda: cluster.usage("tool-1"), lambda found: len(found) >= 2)
    assert sorted(row["outcome"] for row in rows) == ["cancelled", "ok"]
