"""A2A's real client over the whole road: HTTP, gateway, channel, agent, lake."""

from __future__ import annotations

import json

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.types import a2a_pb2 as a2a

from tests.servers.cluster import RunningCluster, eventually


async def test_a_message_streams_and_is_billed_as_the_task(cluster: RunningCluster) -> None:
    """The card leads to the agent; the task's id is that of its row in the lake."""
    cluster.register("peer-1")
    async with httpx.AsyncClient(headers=cluster.headers, timeout=60) as http:
        card = await A2ACardResolver(http, f"{cluster.state.http_url}/a2a/peer-1").get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        text = json.dumps({"script": [{"stream": ["good ", "day"]}]})
        message = a2a.Message(message_id="m-1", role=a2a.ROLE_USER, parts=[a2a.Part(text=text)])
        events = [event async for event in client.send_message(a2a.SendMessageRequest(message=message))]
    assert "".join(p.text for e in events for p in e.artifact_update.artifact.parts) == "good day"
    assert events[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED
    (row,) = eventually(lambda: cluster.usage("peer-1"), lambda found: len(found) >= 1)
    assert (row["invocation_id"], row["outcome"]) == (events[0].task.id, "ok")
