"""Runs under /api/v1, with a gateway and governance that are real and an agent that answers from here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.directory import Directory
from actors.wire import CallAnswer, CallOrder, Usage
from cluster.errors import AgentFailedError
from cluster.runs.run import RunEvent
from cluster.settings import Settings
from serve_apps import run_requests
from tests.gateways import gateway

AGENT = {"agent_id": "planner", "capabilities": ["conversation"], "model": "scripted:echo"}


class Agent:
    """What the directory leads to: it says two words, or fails."""

    def __init__(self) -> None:
        self.orders: list[CallOrder] = []
        self.fails = False
        self.result = CallAnswer("", "stop", "scripted:echo", Usage(tokens_output=2)).to_bytes()

    async def stream(self, principal: Any, agent_id: str, payload: bytes, **_: Any) -> Agent:
        self.orders.append(CallOrder.from_bytes(payload))
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"well "
        if self.fails:
            raise AgentFailedError("It raised.")
        yield b"done"

    async def aclose(self) -> None:
        """Nothing is left."""

    async def stopped(self) -> None:
        """Nothing runs."""


class World:
    def __init__(self, agent: Agent, http: httpx.AsyncClient) -> None:
        self.agent = agent
        self.http = http

    async def post(self, **body: Any) -> httpx.Response:
        return await self.http.post("/api/v1/agents/planner/runs", json=body)

    async def ended(self, run: httpx.Response) -> list[tuple[int, str, Any]]:
        """Return all events of a run: id, name, data."""
        return events(await self.http.get(run.headers["location"] + "/events"))


def events(response: httpx.Response) -> list[tuple[int, str, Any]]:
    found = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_a_quiet_run_shows_that_the_connection_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment comes while nothing else does, no event is lost for it, and leaving ends what was waited for."""
    monkeypatch.setattr(run_requests, "QUIET_S", 0.001)
    go_on, left = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncGenerator[RunEvent]:
        try:
            await go_on.wait()
            yield RunEvent(1, "late")
            await asyncio.Event().wait()
        finally:
            left.set()

    stream = run_requests.run_events(slow(), until=asyncio.get_running_loop().time() + 60)
    assert [await anext(stream) for _ in range(2)] == [b": quiet\n\n"] * 2
    go_on.set()
    while (said := await anext(stream)) == b": quiet\n\n":
        pass
    assert said == b'id: 1\nevent: text\ndata: {"text":"late"}\n\n'
    assert await anext(stream) == b": quiet\n\n"
    await stream.aclose()
    await left.wait()
    left.clear()
    go_on.clear()
    assert [said async for said in run_requests.run_events(slow(), until=0)] == []
    await left.wait()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    agent, settings = Agent(), Settings.load(home=tmp_path)
    monkeypatch.setattr(Directory, "stream", agent.stream)
    async with gateway(settings, monkeypatch) as app:
        key = {"authorization": f"Bearer {(settings.secret_dir / 'api-key').read_text().strip()}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", headers=key) as http:
            (await http.post("/api/v1/agents", json=AGENT)).raise_for_status()
            yield World(agent, http)


async def test_a_run_from_its_start_to_its_end(world: World) -> None:
    """202 at once, then its events by number, its answer, and nothing once it is deleted."""
    run = await world.post(text="plan", thread_id="t", temperature=0.5, metadata={"team": "x"})
    asked = run.json()
    assert (run.status_code, asked["status"], asked["answer"], asked["metadata"]) == (202, "pending", None, {"team": "x"})
    seen = await world.ended(run)
    assert "".join(data["text"] for _, name, data in seen if name == "text") == "well done"
    last_id, name, ended = seen[-1]
    assert (last_id, name) == (len(seen), "end")
    assert (ended["status"], ended["answer"], ended["usage"]["tokens_output"]) == ("success", "well done", 2)
    (order,) = world.agent.orders
    assert (order.invocation_id, order.thread_id, order.temperature) == (asked["run_id"], "t", 0.5)
    assert order.messages == [{"role": "user", "content": "plan"}]
    path = run.headers["location"]
    assert (await world.http.get(path)).json() == ended
    again = await world.http.get(f"{path}/events", headers={"last-event-id": str(last_id - 1)})
    assert events(again) == [seen[-1]]
    assert (await world.http.get("/api/v1/runs?status=success&thread_id=t")).json() == {"runs": [ended], "next": ended["run_id"]}
    assert (await world.http.get(f"/api/v1/runs?after={ended['run_id']}")).json() == {"runs": [], "next": ""}
    assert (await world.http.post(f"{path}/cancel")).json() == ended
    assert (await world.http.delete(path)).json()["status"] == "deleted"
    assert (await world.http.get(path)).status_code == 404


async def test_a_run_in_the_foreground_answers_with_its_end(world: World) -> None:
    """200 with the run, or the error of its agent as the status says it."""
    done = await world.post(messages=[{"role": "user", "content": "x"}], background=False)
    assert (done.status_code, done.json()["answer"]) == (200, "well done")
    world.agent.fails = True
    failed = await world.post(text="x", background=False)
    assert (failed.status_code, failed.json()["code"]) == (500, "agent_failed")


async def test_what_is_wrong_is_said_before_anything_is_kept(world: World) -> None:
    """Each wrong field by its name; an agent that is not there is not run in vain."""
    for body, field in (
        ({}, "messages"),
        ({"text": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"text": ""}, "text"),
        ({"text": "x", "thread_id": "No"}, "thread_id"),
        ({"text": "x", "webhook": "http://hooks.example/"}, "webhook"),
        ({"text": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"text": "x", "colour": "red"}, "colour"),
    ):
        refused = await world.post(**body)
        assert (refused.status_code, [e["field"] for e in refused.json()["errors"]]) == (400, [field]), body
    absent = await world.http.post("/api/v1/agents/nobody/runs", json={"text": "x"})
    assert (absent.status_code, absent.json()["code"]) == (404, "not_found")
    assert (await world.http.get("/api/v1/runs")).json()["runs"] == []
    run = await world.post(text="x")
    for seen in ("x", "-1", "1" * 10):
        odd = await world.http.get(run.headers["location"] + "/events", headers={"last-event-id": seen})
        assert (odd.status_code, odd.json()["errors"][0]["field"]) == (400, "Last-Event-ID")


async def test_a_run_is_started_once_for_a_key(world: World) -> None:
    """The same run is the answer, and its id is the one that an unknown outcome would name."""
    key = {"idempotency-key": "once"}
    first, again = [await world.http.post("/api/v1/agents/planner/runs", json={"text": "x"}, headers=key) for _ in range(2)]
    assert (first.status_code, again.content, again.headers["location"]) == (202, first.content, first.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"
    await world.ended(first)
    assert [order.invocation_id for order in world.agent.orders] == [first.json()["run_id"]]


async def test_whoever_follows_a_run_ends_nothing_by_leaving(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows a run in the background may come and go."""
    hold = asyncio.Event()

    async def held(*_: Any, **__: Any) -> Agent:
        await hold.wait()
        return world.agent

    monkeypatch.setattr(Directory, "stream", held)
    run = await world.post(text="x")
    path = run.headers["location"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await world.http.get(f"{path}/events")
    for _ in range(20):  # time for a cancel that must not be
        assert (await world.http.get(path)).json()["status"] in ("pending", "running")
    hold.set()
    assert events(await world.http.get(f"{path}/events"))[-1][2]["status"] == "success"
    hold.clear()
    run = await world.post(text="x")
    assert (await world.http.post(f"{run.headers['location']}/cancel")).json()["status"] == "cancelled"
    late = await world.http.post(
        "/api/v1/agents/planner/runs", json={"text": "x", "background": False}, headers={"x-deadline-s": "0.01"}
    )
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    (run,) = (await world.http.get("/api/v1/runs?limit=1")).json()["runs"]
    assert events(await world.http.get(f"/api/v1/runs/{run['run_id']}/events"))[-1][2]["status"] == "cancelled"
