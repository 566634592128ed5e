"""LangGraph's own client against a whole cluster: through HAProxy, with the platform's own agents and their bills."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_client, get_sync_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from tests.servers.cluster import RunningCluster, eventually

AGENT = "graph-agent"
PIECES = ["one ", "two ", "three"]


def script(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": json.dumps({"script": list(steps)})}]}


SLEEPS = script({"sleep_s": 600})


@pytest.fixture
async def sdk(cluster: RunningCluster) -> AsyncIterator[LangGraphClient]:
    assert cluster.register(AGENT, capabilities=["conversation"]).status_code in (200, 201)
    async with get_client(url=f"{cluster.state.http_url}/langgraph", api_key=cluster.key) as client:
        yield client


def outcomes(cluster: RunningCluster, run_id: str) -> list[str]:
    return [row["outcome"] for row in cluster.usage(AGENT) if row["invocation_id"] == run_id]


async def test_a_conversation_with_the_real_client(cluster: RunningCluster, sdk: LangGraphClient) -> None:
    """Assistants, a thread, wait, stream, state; the synchronous client sees the same; each run is billed once."""
    (assistant,) = await sdk.assistants.search(graph_id=AGENT)
    thread = (await sdk.threads.create())["thread_id"]
    first: Any = await sdk.runs.wait(thread, assistant["assistant_id"], input=script({"say": "hello"}))
    assert first["messages"][-1]["content"] == "hello"
    modes: Any = ["messages-tuple", "values"]
    parts = [p async for p in sdk.runs.stream(thread, AGENT, input=script({"stream": PIECES}), stream_mode=modes)]
    chunks = [p.data[0]["content"] for p in parts if p.event == "messages"]
    assert "".join(chunks) == "".join(PIECES) == parts[-2].data["messages"][-1]["content"]
    with get_sync_client(url=f"{cluster.state.http_url}/langgraph", api_key=cluster.key) as sync:
        state = sync.threads.get_state(thread)
        runs = sync.runs.list(thread)
        alone: Any = sync.runs.wait(None, AGENT, input=script({"say": "alone"}))
    assert state["values"] == parts[-2].data
    assert [run["status"] for run in runs] == ["success", "success"]
    assert alone["messages"][-1]["content"] == "alone"
    for run in runs:
        eventually(lambda run=run: outcomes(cluster, run["run_id"]), lambda found: found == ["ok"])  # type: ignore[misc]


async def test_a_stream_that_broke_is_gone_on_with(cluster: RunningCluster, sdk: LangGraphClient) -> None:
    """From the event that was seen last, on another connection, with none lost and none twice."""
    thread = (await sdk.threads.create())["thread_id"]
    body = {"assistant_id": AGENT, "input": script({"stream": PIECES}), "stream_mode": "messages-tuple", "stream_resumable": True}
    path = f"/langgraph/threads/{thread}/runs/stream"
    with httpx.stream("POST", cluster.state.http_url + path, headers=cluster.headers, json=body, timeout=60) as broken:
        came = b""
        for block in broken.iter_raw():
            came += block
            if b"event: messages" in came:
                break
        place = broken.headers["location"]
    (run,) = await sdk.runs.list(thread)
    assert place == f"/threads/{thread}/runs/{run['run_id']}/stream"
    *_, seen = re.findall(rb"^id: (\S+)$", came, re.M)
    rest = [p async for p in sdk.runs.join_stream(thread, run["run_id"], last_event_id=seen.decode())]
    whole = [p async for p in sdk.runs.join_stream(thread, run["run_id"])]
    assert [p.id for p in whole].index(seen.decode()) == len(whole) - len(rest) - 1
    assert whole[len(whole) - len(rest) :] == rest
    assert "".join(p.data[0]["content"] for p in whole if p.event == "messages") == "".join(PIECES)


async def test_a_busy_thread_and_a_cancel_that_stops_the_work(cluster: RunningCluster, sdk: LangGraphClient) -> None:
    """reject, enqueue, interrupt and rollback; what was stopped has stopped, is billed once, and the agent takes the next."""
    thread, runs = (await sdk.threads.create())["thread_id"], sdk.runs
    before = cluster.journal_bytes(AGENT)
    first = await runs.create(thread, AGENT, input=SLEEPS)
    eventually(lambda: cluster.journal_bytes(AGENT), lambda size: size > before)
    with pytest.raises(ConflictError, match="is busy"):
        await runs.create(thread, AGENT, input=SLEEPS, multitask_strategy="reject")
    queued = await runs.create(thread, AGENT, input=SLEEPS, multitask_strategy="enqueue")
    await runs.cancel(thread, first["run_id"], wait=True)
    assert (await runs.get(thread, first["run_id"]))["status"] == "interrupted"
    rolled = await runs.create(thread, AGENT, input=SLEEPS, multitask_strategy="interrupt")
    await runs.join(thread, queued["run_id"])
    last: Any = await runs.wait(thread, AGENT, input=script({"say": "well"}), multitask_strategy="rollback")
    assert last["messages"][-1]["content"] == "well"
    with pytest.raises(NotFoundError):
        await runs.get(thread, rolled["run_id"])
    statuses = [run["status"] for run in await runs.list(thread)]
    assert statuses == ["success", "interrupted", "interrupted"]
    eventually(lambda: outcomes(cluster, first["run_id"]), lambda found: found == ["cancelled"])
