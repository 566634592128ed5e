"""Changes of agents and gangs over HTTP: what reaches governance, and what is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from actors.invoker import Invoker
from cluster.clock import SystemClock
from cluster.errors import PreconditionFailedError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import create_app
from serve_apps.edge import Edge
from tests.gates import open_gate

DIGEST = "ab" * 32
AGENT = {"agent_id": "a", "spec_digest": DIGEST}
BODY = {"agent_id": "a", "capabilities": ["conversation"]}


class Governance:
    """Answers as governance does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.changed = True
        self.scopes = frozenset(Scope)
        self.stale = False

    def authenticate(self, _: str) -> Principal:
        return Principal(TenantId("acme"), ProjectId("default"), "key:1", self.scopes)

    def append(self, _: object) -> int:
        return 0

    def close(self) -> None:
        return None

    async def call(self, method: str, principal: str, *arguments: Any, **_: Any) -> Any:
        self.asked.append((method, arguments))
        if self.stale:
            raise PreconditionFailedError("It has another specification.")
        answers = {
            "get": AGENT,
            "change": {"agent": AGENT, "changed": self.changed},
            "register_gang": {"gang_id": "crew", "agents": ["a", "b"], "created": self.changed},
            "get_gang": {"gang_id": "crew", "agents": ["a", "b"], "strategy": "pack"},
            "remove_gang": {"status": "removed", "gang_id": "crew", "agents": ["a", "b"]},
        }
        return answers[method]


@pytest.fixture
def governance() -> Governance:
    return Governance()


@pytest.fixture
async def client(tmp_path: Path, governance: Governance) -> AsyncIterator[httpx.AsyncClient]:
    fake = cast("Any", governance)
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


async def test_what_was_read_can_be_changed_by_its_tag(client: httpx.AsyncClient, governance: Governance) -> None:
    """GET gives an ETag that PUT takes in If-Match; the answer says whether anything changed, and has the tag of what is."""
    tag = (await client.get("/api/v1/agents/a")).headers["etag"]
    assert tag == f'"{DIGEST}"'
    for changed, status in ((True, "changed"), (False, "unchanged")):
        governance.changed = changed
        answer = await client.put("/api/v1/agents/a", json=BODY, headers={"if-match": tag, "x-request-id": "r-1"})
        assert (answer.status_code, answer.headers["etag"]) == (200, tag)
        assert answer.json() == {
            "status": status,
            "agent_id": "a",
            "security_clearance": "validated",
            "spec_digest": DIGEST,
        }
    method, (agent, body, _, match) = governance.asked[-1]
    assert (method, agent, json.loads(body), match) == ("change", "a", BODY, DIGEST)


@pytest.mark.parametrize(("given", "passed_on"), [(None, ""), ("*", "*")])
async def test_a_change_may_be_of_whatever_is_there(
    client: httpx.AsyncClient, governance: Governance, given: str | None, passed_on: str
) -> None:
    """Without If-Match, and with "*", any specification is changed."""
    await client.put("/api/v1/agents/a", json=BODY, headers={"if-match": given} if given else {})
    assert governance.asked[-1][1][-1] == passed_on


@pytest.mark.parametrize("tag", [DIGEST, f'W/"{DIGEST}"', f'"{DIGEST}", "x"', '"x"', '""', ""])
async def test_an_odd_tag_is_refused_and_never_read_as_any(client: httpx.AsyncClient, governance: Governance, tag: str) -> None:
    """Unquoted, weak, several, no digest, or nothing at all: 400, and nothing is asked of governance."""
    answer = await client.put("/api/v1/agents/a", json=BODY, headers={"if-match": tag})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "If-Match")
    assert governance.asked == []


async def test_of_two_tags_none_is_chosen(client: httpx.AsyncClient, governance: Governance) -> None:
    """Threat 17 (control: exchange._SINGLE): the first would be checked here, and the second where another reads it."""
    tags = [("if-match", "*"), ("if-match", f'"{DIGEST}"')]
    answer = await client.put("/api/v1/agents/a", json=BODY, headers=tags)
    assert (answer.status_code, governance.asked) == (400, [])


async def test_a_tag_of_before_is_a_failed_precondition(client: httpx.AsyncClient, governance: Governance) -> None:
    """412, as a problem document."""
    governance.stale = True
    answer = await client.put("/api/v1/agents/a", json=BODY, headers={"if-match": f'"{DIGEST}"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")


async def test_gangs_are_registered_shown_and_removed(client: httpx.AsyncClient, governance: Governance) -> None:
    """201 the first time and 200 again, and governance is asked as itself."""
    for created, status in ((True, 201), (False, 200)):
        governance.changed = created
        answer = await client.post("/api/v1/gangs", json={"gang_id": "crew"})
        assert answer.status_code == status
        assert answer.json() == {
            "status": "registered",
            "gang_id": "crew",
            "agents": ["a", "b"],
            "security_clearance": "validated",
        }
    assert (await client.get("/api/v1/gangs/crew")).json()["strategy"] == "pack"
    assert (await client.delete("/api/v1/gangs/crew")).json()["status"] == "removed"
    assert [(method, arguments[0]) for method, arguments in governance.asked[-2:]] == [
        ("get_gang", "crew"),
        ("remove_gang", "crew"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("PUT", "/api/v1/agents/a", Scope.AGENTS_REGISTER),
        ("POST", "/api/v1/gangs", Scope.AGENTS_REGISTER),
        ("GET", "/api/v1/gangs/crew", Scope.AGENTS_READ),
        ("DELETE", "/api/v1/gangs/crew", Scope.AGENTS_REMOVE),
    ],
)
async def test_each_takes_its_scope(
    client: httpx.AsyncClient, governance: Governance, method: str, path: str, scope: Scope
) -> None:
    """A key without it is refused before governance is asked."""
    governance.scopes = frozenset(Scope) - {scope}
    answer = await client.request(method, path, json=BODY if method in ("PUT", "POST") else None)
    assert (answer.status_code, scope.value in answer.text) == (403, True)
    assert governance.asked == []
