"""Requests that are odd in themselves are refused in our own words, and what they hold stays out of the record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from actors.invoker import Invoker
from cluster.clock import SystemClock
from cluster.errors import NotFoundError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.fact import Fact
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import create_app
from serve_apps.edge import Edge
from tests.gates import open_gate

SECRET = "5e" * 32
KEY = f"sk-sov-{'ab' * 8}-{SECRET}"


class Around:
    """What is round the edge: lets everybody in, knows nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.facts: list[dict[str, Any]] = []

    def authenticate(self, _: str) -> Principal:
        return Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset(Scope))

    def append(self, fact: Fact) -> int:
        self.facts.append(fact.body)
        return 0

    async def call(self, method: str, *_: Any, **__: Any) -> Any:
        self.asked.append(method)
        raise NotFoundError("There is no such thing.")


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.fixture
async def client(tmp_path: Path, around: Around) -> AsyncIterator[httpx.AsyncClient]:
    fake = cast("Any", around)
    edge = Edge(
        Settings(home=tmp_path),
        authenticator=fake,
        governance=fake,
        invoker=Invoker(fake, places=64),
        journal=fake,
        gate=open_gate(tmp_path),
        metrics=Metrics(tmp_path, "gateway"),
        clock=SystemClock(),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(edge)), base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models", "/v1/nowhere"])
async def test_threat_17_headers_said_twice_are_refused_where_nothing_is_too(
    client: httpx.AsyncClient, around: Around, path: str
) -> None:
    """Control: app.create_app's not_routed. A path or method that is none is no way round: 400, and one fact."""
    answer = await client.patch(path, headers=[("authorization", "Bearer a"), ("authorization", "Bearer b")])
    assert (answer.status_code, [f["reason"] for f in around.facts]) == (400, ["invalid_request"])


@pytest.mark.parametrize("path", [f"/api/v1/keys/{KEY}", f"/nowhere/{KEY}"])
async def test_a_key_in_a_path_is_not_in_the_record(client: httpx.AsyncClient, around: Around, path: str) -> None:
    """Control: Edge.record. Whoever takes a key for its id has it in no log that others read."""
    assert (await client.get(path)).status_code == 404
    assert len(around.facts) == 1
    assert SECRET[:8] not in str(around.facts)


@pytest.mark.parametrize("query", ["limit=1&limit=1000", "after=a&after=b", "limit=0", "limit=%D9%A1", "tenant=globex"])
async def test_a_list_takes_each_word_once_and_in_its_bounds(client: httpx.AsyncClient, around: Around, query: str) -> None:
    """Control: read_query. Of two the last would be heeded here, and the first where another reads it."""
    answer = await client.get(f"/api/v1/agents?{query}")
    assert (answer.status_code, [e["field"] for e in answer.json()["errors"]]) == (400, [query.partition("=")[0]])
    assert around.asked == []
