"""What clients hear while the node can record no more: a 503 that says when to come back, and nothing that is not on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from actors.invoker import Invoker
from cluster.clock import FakeClock
from cluster.errors import StorageError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.backlog import Backlog
from cluster.journal.fact import Fact
from cluster.journal.gate import SAMPLE_US
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import create_app
from serve_apps.edge import Edge
from tests.gates import open_gate

LIMIT = 1_000
CALL = {"model": "planner", "messages": [{"role": "user", "content": "x"}]}


class Node:
    """The gateway's collaborators: nobody may be asked for anything while the gate is closed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = FakeClock()
        self.recorded: list[Fact] = []
        self.disk_full = False
        everyone = cast("Any", self)
        settings = Settings(home=home)
        gate = open_gate(home, limit_bytes=LIMIT, clock=self.clock)
        self.edge = Edge(
            settings,
            authenticator=everyone,
            governance=everyone,
            invoker=Invoker(everyone, places=64, gate=gate),
            journal=everyone,
            gate=gate,
            metrics=Metrics(home, "gateway"),
            clock=self.clock,
        )

    def authenticate(self, _: str) -> Principal:
        return Principal(TenantId("default"), ProjectId("default"), "key:test", frozenset(Scope))

    def append(self, fact: Fact) -> None:
        if self.disk_full:
            raise StorageError("The disk is full.")
        self.recorded.append(fact)

    def waiting(self, backlog_bytes: int) -> None:
        self.clock.advance(SAMPLE_US)
        Backlog(backlog_bytes, self.clock.monotonic_us(), retry_after_s=2.0).write(self.home)

    async def post(self, path: str, body: object) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(self.edge))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, json=body)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_threat_64_a_call_is_refused_before_anybody_is_asked(node: Node) -> None:
    """Control: Invoker._enter. 503 with a code and Retry-After, in the shape that OpenAI's clients read."""
    node.waiting(LIMIT)
    answer = await node.post("/v1/chat/completions", CALL)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"]["code"] == "journal_full"


async def test_threat_54_a_refusal_that_cannot_be_recorded_is_not_given(node: Node) -> None:
    """Control: Edge.record. On a full disk, and at the limit, a bad request is not told that it is bad, but to come back."""
    assert (await node.post("/v1/chat/completions", {})).status_code == 400
    assert len(node.recorded) == 1
    node.disk_full = True
    assert (await node.post("/v1/chat/completions", {})).json()["error"]["code"] == "storage"
    node.disk_full = False
    node.waiting(LIMIT)
    answer = await node.post("/v1/chat/completions", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_full")
    assert len(node.recorded) == 1
