"""Runs and kept answers on a whole cluster: over HTTP, through HAProxy, with the platform's own agents and their bills."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.servers.cluster import RunningCluster, eventually

CHAT = "/v1/chat/completions"


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": list(steps)})


@pytest.fixture(scope="module")
def lead(cluster: RunningCluster) -> str:
    """An agent that may ask the agent `aide`."""
    assert cluster.register("run-lead", capabilities=["delegation"]).status_code == 201
    assert cluster.register("run-aide", capabilities=["conversation"]).status_code == 201
    return "run-lead"


def start(cluster: RunningCluster, agent_id: str, text: str, **more: Any) -> httpx.Response:
    return cluster.http.post(f"/api/v1/agents/{agent_id}/runs", json={"text": text} | more)


def bills(cluster: RunningCluster, run_id: str) -> dict[str, str]:
    """Return each agent's outcome in this call's tree, which has one row for each."""
    rows = [r for agent in ("run-lead", "run-aide") for r in cluster.usage(agent)]
    mine = [r for r in rows if run_id in (r["invocation_id"], r["parent_invocation_id"])]
    assert len({r["agent_id"] for r in mine}) == len(mine), "billed twice"
    return {r["agent_id"]: r["outcome"] for r in mine}


def test_a_run_goes_on_without_its_client_and_is_followed_from_where_one_stood(cluster: RunningCluster, lead: str) -> None:
    """202 at once; its events come with numbers, again after any of them; its bill has the run's id."""
    run = start(cluster, lead, script({"stream": ["one ", "two ", "three"]}), thread_id="run-thread")
    assert run.status_code == 202
    path = run.headers["location"]
    with cluster.http.stream("GET", f"{path}/events") as followed:
        lines = [line for line in followed.iter_lines() if line and not line.startswith(":")]
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert ids == list(range(1, len(ids) + 1))
    assert "".join(d["text"] for d in data[:-1]) == data[-1]["answer"] == "one two three"
    assert data[-1]["status"] == "success"
    again = cluster.http.get(f"{path}/events", headers={"last-event-id": str(ids[-2])})
    assert again.text.count("id: ") == 1
    eventually(lambda: bills(cluster, run.json()["run_id"]), lambda b: b == {"run-lead": "ok"})


def test_threat_79_a_cancel_over_http_ends_the_whole_tree(cluster: RunningCluster, lead: str) -> None:
    """Its answer comes when both agents have stopped; each is billed once, and both take the next call."""
    ask = {"name": "ask_agent", "args": {"agent_id": "run-aide", "question": script({"sleep_s": 600})}}
    before = cluster.journal_bytes("run-aide")
    run = start(cluster, lead, script({"call_tool": ask}, {"say": "{tool}"})).json()
    eventually(lambda: cluster.journal_bytes("run-aide"), lambda size: size > before)
    ended = cluster.http.post(f"/api/v1/runs/{run['run_id']}/cancel").json()
    sizes = [cluster.journal_bytes(name) for name in ("run-lead", "run-aide")]
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "cancelled")
    both = {"run-lead": "cancelled", "run-aide": "cancelled"}
    eventually(lambda: bills(cluster, run["run_id"]), lambda b: b == both)
    # Nothing was written after the answer: both had stopped by then.
    assert [cluster.journal_bytes(name) for name in ("run-lead", "run-aide")] == sizes
    assert start(cluster, lead, script({"say": "well"}), background=False).json()["answer"] == "well"


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_completion_that_is_sent_again_is_done_once(cluster: RunningCluster, lead: str, stream: bool) -> None:
    """The same bytes with the same invocation's id, also as a stream; OpenAI's own client reads what is replayed."""
    messages: Any = [{"role": "user", "content": script({"stream": ["a", "b"]})}]
    body = {"model": lead, "stream": stream, "messages": messages}
    key = {"idempotency-key": str(uuid4())}
    first, again = [cluster.http.post(CHAT, json=body, headers=key) for _ in range(2)]
    assert (first.status_code, again.status_code, again.content) == (200, 200, first.content)
    assert b"chatcmpl-" in first.content
    assert [r.headers.get("idempotent-replayed") for r in (first, again)] == [None, "true"]
    refused = cluster.http.post(CHAT, json=body | {"temperature": 0}, headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_mismatch")
    with cluster.openai(default_headers={"idempotency-key": str(uuid4())}) as client:
        if stream:
            both = [list(client.chat.completions.create(model=lead, messages=messages, stream=True)) for _ in range(2)]
            assert "".join(c.choices[0].delta.content or "" for c in both[1]) == "ab"
            assert both[0] == both[1]
        else:
            said = [client.chat.completions.create(model=lead, messages=messages) for _ in range(2)]
            assert said[0] == said[1]
