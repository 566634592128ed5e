"""What a tenant finds out about another through the way in: nothing. The gateway and governance are real; Ray is not there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.settings import Settings
from tests.gateways import gateway
from tests.governors import facts

AGENT = {"agent_id": "planner", "capabilities": ["conversation"], "model": "scripted:echo"}
# Of the same lengths as what they stand in for, and nobody's.
NOBODYS = {"agent_id": "nothing", "model": "nothing", "key_id": "0" * 16, "tenant_id": "none", "gang_id": "gone"}
NOBODYS |= {"project_id": "none"}
CALL_TOOL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
CALL_TOOL |= {"params": {"name": "<agent_id>", "arguments": {"text": "hello"}}}
_UUID = "0" * 8 + "-0000-4000-8000-" + "0" * 12
NOBODYS |= {"response_id": f"resp_{'0' * 36}", **dict.fromkeys(("run_id", "thread_id", "assistant_id", "checkpoint_id"), _UUID)}
GANG = {"gang_id": "crew", "agents": [AGENT | {"agent_id": f"crew-{n}"} for n in range(2)]}


@dataclass
class Tenant:
    """One tenant's client, and the ids of what belongs to it."""

    http: httpx.AsyncClient
    ids: dict[str, str] = field(default_factory=dict)

    async def send(self, route: str, ids: dict[str, str], headers: dict[str, str] | None = None) -> httpx.Response:
        """Ask a route of the table below about `ids`."""
        method, path = route.split()
        query, body = ROUTES[route]
        named = {k: v.format_map(ids) for k, v in query.items()}
        content = json.loads(
            json.dumps(body).replace("{", "{{").replace("}", "}}").replace("<", "{").replace(">", "}").format_map(ids)
        )
        return await self.http.request(method, path.format_map(ids), params=named, json=content, headers=headers)


LANGGRAPH = {"assistant_id": "<assistant_id>", "input": {"messages": [{"role": "user", "content": "hello"}]}}
# Every route with its query and body; `<agent_id>` and the like stand for the ids that are asked for.
ROUTES: dict[str, tuple[dict[str, str], Any]] = {
    "POST /v1/chat/completions": ({}, {"model": "<agent_id>", "messages": [{"role": "user", "content": "hello"}]}),
    "GET /v1/models": ({}, None),
    "GET /v1/models/{model}": ({}, None),
    "POST /v1/responses": ({}, {"model": "<agent_id>", "input": "hello"}),
    "GET /v1/responses/{response_id}": ({}, None),
    "POST /v1/responses/{response_id}/cancel": ({}, None),
    "DELETE /v1/responses/{response_id}": ({}, None),
    "POST /mcp": ({}, CALL_TOOL),
    "POST /a2a/{agent_id}": ({}, {"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}),
    "GET /a2a/{agent_id}/.well-known/agent-card.json": ({}, None),
    "POST /api/v1/agents": ({}, AGENT | {"agent_id": "<agent_id>"}),
    "GET /api/v1/agents": ({}, None),
    "GET /api/v1/agents/{agent_id}": ({}, None),
    "PUT /api/v1/agents/{agent_id}": ({}, AGENT | {"agent_id": "<agent_id>", "instructions": "Obey."}),
    "DELETE /api/v1/agents/{agent_id}": ({}, None),
    "POST /api/v1/agents/{agent_id}/runs": ({}, {"text": "hello"}),
    "GET /api/v1/runs": ({}, None),
    "GET /api/v1/runs/{run_id}": ({}, None),
    "GET /api/v1/runs/{run_id}/events": ({}, None),
    "POST /api/v1/runs/{run_id}/cancel": ({}, None),
    "DELETE /api/v1/runs/{run_id}": ({}, None),
    "GET /api/v1/webhooks/secret": ({}, None),
    "POST /api/v1/gangs": ({}, GANG | {"gang_id": "<gang_id>"}),
    "GET /api/v1/gangs/{gang_id}": ({}, None),
    "DELETE /api/v1/gangs/{gang_id}": ({}, None),
    "GET /api/v1/status": ({}, None),
    "GET /api/v1/limits": ({}, None),
    "GET /api/v1/tenants": ({}, None),
    "POST /api/v1/tenants": ({}, {"tenant_id": "<tenant_id>", "plan": "trial"}),
    "GET /api/v1/tenants/{tenant_id}": ({}, None),
    "PATCH /api/v1/tenants/{tenant_id}": ({}, {"state": "suspended"}),
    "GET /api/v1/tenants/{tenant_id}/projects": ({}, None),
    "POST /api/v1/tenants/{tenant_id}/projects": ({}, {"project_id": "stolen"}),
    "PATCH /api/v1/tenants/{tenant_id}/projects/{project_id}": ({}, {"limits": {"concurrency": 1}}),
    "GET /api/v1/keys": ({"tenant_id": "{tenant_id}"}, None),
    "POST /api/v1/keys": ({}, {"name": "k", "role": "caller", "tenant_id": "<tenant_id>"}),
    "GET /api/v1/keys/{key_id}": ({}, None),
    "PATCH /api/v1/keys/{key_id}": ({}, {"budget": {}}),
    "POST /api/v1/keys/{key_id}/rotate": ({}, {"overlap_s": 0}),
    "DELETE /api/v1/keys/{key_id}": ({}, None),
    "GET /health/live": ({}, None),
    "GET /health/ready": ({}, None),
    "GET /langgraph/ok": ({}, None),
    "GET /langgraph/info": ({}, None),
    "POST /langgraph/assistants": ({}, {"graph_id": "<agent_id>"}),
    "POST /langgraph/assistants/search": ({}, {}),
    "POST /langgraph/assistants/count": ({}, {}),
    "GET /langgraph/assistants/{assistant_id}": ({}, None),
    "PATCH /langgraph/assistants/{assistant_id}": ({}, {"name": "stolen"}),
    "DELETE /langgraph/assistants/{assistant_id}": ({}, None),
    "GET /langgraph/assistants/{assistant_id}/schemas": ({}, None),
    "POST /langgraph/threads": ({}, {}),
    "POST /langgraph/threads/search": ({}, {}),
    "POST /langgraph/threads/count": ({}, {}),
    "GET /langgraph/threads/{thread_id}": ({}, None),
    "PATCH /langgraph/threads/{thread_id}": ({}, {"metadata": {"of": "globex"}}),
    "DELETE /langgraph/threads/{thread_id}": ({}, None),
    "GET /langgraph/threads/{thread_id}/state": ({}, None),
    "GET /langgraph/threads/{thread_id}/state/{checkpoint_id}": ({}, None),
    "POST /langgraph/threads/{thread_id}/history": ({}, {}),
    "POST /langgraph/threads/{thread_id}/runs": ({}, LANGGRAPH),
    "POST /langgraph/threads/{thread_id}/runs/wait": ({}, LANGGRAPH),
    "POST /langgraph/threads/{thread_id}/runs/stream": ({}, LANGGRAPH),
    "GET /langgraph/threads/{thread_id}/runs": ({}, None),
    "GET /langgraph/threads/{thread_id}/runs/{run_id}": ({}, None),
    "DELETE /langgraph/threads/{thread_id}/runs/{run_id}": ({}, None),
    "POST /langgraph/threads/{thread_id}/runs/{run_id}/cancel": ({}, None),
    "GET /langgraph/threads/{thread_id}/runs/{run_id}/join": ({}, None),
    "GET /langgraph/threads/{thread_id}/runs/{run_id}/stream": ({}, None),
    "POST /langgraph/runs": ({}, LANGGRAPH),
    "POST /langgraph/runs/wait": ({}, LANGGRAPH),
    "POST /langgraph/runs/stream": ({}, LANGGRAPH),
    "POST /langgraph/runs/batch": ({}, [LANGGRAPH]),
    "POST /langgraph/runs/cancel": ({}, {"thread_id": "<thread_id>", "run_ids": ["<run_id>"]}),
}
# What names something that is another's is not there; what only operators may do is refused before anything is looked at.
_NAMED = ("{agent_id}", "{gang_id}", "{run_id}", "{response_id}", "{model}", "keys", "POST /v1/")
_OF_LANGGRAPH = ("{thread_id}", "{assistant_id}", "langgraph/runs", "POST /langgraph/assistants")
_ASKED_OF_ALL = {f"POST /langgraph/assistants/{what}" for what in ("search", "count")}
FOREIGN = {name: 404 for name in ROUTES if any(part in name for part in (*_NAMED, *_OF_LANGGRAPH)) and name not in _ASKED_OF_ALL}
FOREIGN |= {"POST /mcp": 200}
FOR_OPERATORS = {name: 403 for name in ROUTES if "tenants" in name}


@dataclass
class World:
    home: Path
    operator: Tenant
    acme: Tenant
    globex: Tenant
    document: dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Two tenants: acme with an agent, a key and a project of its own, and globex, which administers itself."""
    settings = Settings.load(home=tmp_path)
    async with gateway(settings, monkeypatch) as app:
        yield await _settle(tmp_path, httpx.ASGITransport(app), (settings.secret_dir / "api-key").read_text().strip())


async def _settle(home: Path, transport: httpx.ASGITransport, first_key: str) -> World:
    def client(key: str) -> Tenant:
        headers = {"authorization": f"Bearer {key}", "x-request-id": "r" * 36}
        return Tenant(httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers))

    operator = client(first_key)
    tenants = []
    for name in ("acme", "globex"):
        (await operator.http.post("/api/v1/tenants", json={"tenant_id": name, "plan": "standard"})).raise_for_status()
        made = await operator.http.post("/api/v1/keys", json={"name": "first", "role": "admin", "tenant_id": name})
        made_project = await operator.http.post(f"/api/v1/tenants/{name}/projects", json={"project_id": f"{name}-web"})
        made_project.raise_for_status()
        tenants.append(client(made.json()["key"]))
        tenants[-1].ids |= {
            "tenant_id": name,
            "project_id": f"{name}-web",
            "key_id": made.json()["key_id"],
            "agent_id": "planner",
            "model": "planner",
            "gang_id": "crew",
        }
    acme, globex = tenants
    (await acme.http.post("/api/v1/agents", json=AGENT)).raise_for_status()
    (await acme.http.post("/api/v1/gangs", json=GANG)).raise_for_status()
    run = await acme.http.post("/api/v1/agents/planner/runs", json={"text": "a secret plan", "metadata": {"of": "acme"}})
    acme.ids["run_id"] = run.json()["run_id"]
    acme.ids["response_id"] = f"resp_{run.json()['run_id']}"
    # Ended before anybody looks: what it asks of the store would count as theirs.
    (await acme.http.post(f"{run.headers['location']}/cancel")).raise_for_status()
    thread = await acme.http.post("/langgraph/threads", json={"metadata": {"of": "acme"}})
    mine = await acme.http.post("/langgraph/assistants", json={"graph_id": "planner", "name": "acme's"})
    acme.ids |= {"thread_id": thread.json()["thread_id"], "assistant_id": mine.json()["assistant_id"]}
    acme.ids["checkpoint_id"] = acme.ids["run_id"]
    document = (await acme.http.get("/openapi.json")).json()
    return World(home, operator, acme, globex, document)


def test_every_route_is_tried(world: World) -> None:
    """A route that is added is added to the table."""
    assert {f"{m.upper()} {path}" for path, methods in world.document["paths"].items() for m in methods} == set(ROUTES)


async def test_threat_21_what_is_anothers_is_not_there_in_the_same_words_and_steps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls: the tenant in each path of the store, find_key, Tenancy.answer. No route says by status, words or work that an
    id is somebody else's, and none changes it.
    """
    reads: list[str] = []
    get = SqliteCoordination.get
    monkeypatch.setattr(SqliteCoordination, "get", lambda self, path: (reads.append(path), get(self, path))[1])

    async def tried(route: str, ids: dict[str, str]) -> tuple[int, str, dict[str, str], int]:
        reads.clear()
        answer = await world.globex.send(route, ids)
        words = answer.text
        for name, each in sorted(ids.items(), key=lambda item: -len(item[1])):  # a response's id has a run's in it
            words = words.replace(each, f"<{name}>")
        headers = {k: v for k, v in answer.headers.items() if k != "content-length"}
        return answer.status_code, words, headers, len(reads)

    for route, status in (FOREIGN | FOR_OPERATORS).items():
        await tried(route, NOBODYS)  # so that neither finds more in a cache than the other
        unknown, foreign = await tried(route, NOBODYS), await tried(route, world.acme.ids)
        assert foreign == unknown, route
        assert foreign[0] == status, route
    assert (await world.acme.http.get("/api/v1/agents/planner")).json()["state"] == "passive"
    key = await world.acme.http.get(f"/api/v1/keys/{world.acme.ids['key_id']}")
    assert (key.status_code, key.json()["state"]) == (200, "active")
    assert [k["name"] for k in (await world.acme.http.get("/api/v1/keys")).json()["keys"]] == ["first"]


async def test_threat_21_each_attempt_leaves_one_fact_of_who_tried(world: World) -> None:
    """Control: Edge.record. In the log of the tenant that tried, whatever it tried for."""
    for route in FOREIGN | FOR_OPERATORS:
        await world.globex.send(route, world.acme.ids)
    refused = [e for e in facts(world.home) if e.action == "gateway:request:refuse"]
    assert {(e.tenant_id, e.actor) for e in refused} == {("globex", f"key:{world.globex.ids['key_id']}")}
    assert len(refused) == len(FOREIGN | FOR_OPERATORS)


async def test_threat_21_a_run_is_reached_by_its_own_thread_and_tenant_alone(world: World) -> None:
    """Controls: the tenant in the run store, LangGraphRoutes._run. Neither by another's thread nor by one of one's own."""
    body = {"assistant_id": "planner", "input": {"messages": [{"role": "user", "content": "a secret plan"}]}}
    own = (await world.globex.http.post("/langgraph/threads", json={})).json()
    for started in (f"/langgraph/threads/{world.acme.ids['thread_id']}/runs", "/langgraph/runs"):
        run = (await world.acme.http.post(started, json=body)).json()
        path = "/langgraph/threads/{thread_id}/runs/{run_id}".format_map(run)
        (await world.acme.http.post(f"{path}/cancel")).raise_for_status()
        for thread_id in (run["thread_id"], run["run_id"], own["thread_id"]):
            foreign = f"/langgraph/threads/{thread_id}/runs/{run['run_id']}"
            for method, rest in (("GET", ""), ("GET", "/join"), ("GET", "/stream"), ("POST", "/cancel"), ("DELETE", "")):
                assert (await world.globex.http.request(method, foreign + rest)).status_code == 404, (thread_id, rest)
        assert (await world.acme.http.get(path)).json()["status"] == "interrupted"


async def test_threat_24_lists_hold_nothing_of_anybody_else(world: World) -> None:
    """Controls: Registry.page and list_keys by tenant, NativeRoutes.status. Also the status has no word of others."""
    own = world.globex.ids["key_id"]
    assert (await world.globex.http.get("/api/v1/agents")).json() == {"agents": [], "next": ""}
    assert (await world.globex.http.get("/v1/models")).json()["data"] == []
    assert [k["key_id"] for k in (await world.globex.http.get("/api/v1/keys")).json()["keys"]] == [own]
    assert (await world.globex.http.get("/api/v1/runs")).json() == {"runs": [], "next": ""}
    assert [r["run_id"] for r in (await world.acme.http.get("/api/v1/runs")).json()["runs"]] == [world.acme.ids["run_id"]]
    for path in ("/langgraph/threads/search", "/langgraph/assistants/search"):
        assert (await world.globex.http.post(path, json={})).json() == []
    assert len({(await t.http.get("/api/v1/webhooks/secret")).json()["secret"] for t in (world.acme, world.globex)}) == 2
    for path in (
        "/api/v1/agents",
        "/v1/models",
        "/api/v1/keys",
        "/api/v1/runs",
        "/api/v1/status",
        "/api/v1/limits",
        "/health/ready",
    ):
        text = (await world.globex.http.get(path)).text
        assert not [each for each in (*world.acme.ids.values(), "trial") if each in text], path
    mine, all_of_it = [(await t.http.get("/api/v1/status")).json() for t in (world.globex, world.operator)]
    assert mine.keys() == {"live", "sandbox", "policy"}
    assert all_of_it.keys() == mine.keys() | {"warm_pool", "journal"}


async def test_names_are_each_tenants_own(world: World) -> None:
    """The same agent id, removed by one tenant, is still there for the other; so is an Idempotency-Key."""
    key = {"idempotency-key": "once"}
    assert (await world.globex.http.post("/api/v1/agents", json=AGENT, headers=key)).status_code == 201
    assert (await world.globex.http.post("/api/v1/gangs", json=GANG)).status_code == 201
    other = AGENT | {"agent_id": "other"}
    assert (await world.acme.http.post("/api/v1/agents", json=other, headers=key)).status_code == 201
    assert (await world.globex.http.delete("/api/v1/agents/planner")).status_code == 200
    assert (await world.acme.http.get("/api/v1/agents/planner")).status_code == 200


async def test_threat_23_a_tenant_that_a_client_names_in_a_header_is_ignored(world: World) -> None:
    """Control: Edge.authenticate. The tenant comes from the credential and from nowhere else."""
    names = ("x-tenant", "x-tenant-id", "x-sovereign-tenant", "x-project", "x-forwarded-user")
    named = dict.fromkeys(names, "acme") | {"x-scopes": "sovereign:tenants:manage"}
    for route, status in (FOREIGN | FOR_OPERATORS).items():
        assert (await world.globex.send(route, world.acme.ids, named)).status_code == status, route
    assert (await world.globex.http.get("/api/v1/agents", headers=named)).json()["agents"] == []
    made = await world.globex.http.post("/api/v1/agents", json=AGENT | {"agent_id": "mine"}, headers=named)
    assert made.status_code == 201
    theirs = [a["agent_id"] for a in (await world.acme.http.get("/api/v1/agents")).json()["agents"]]
    assert theirs == ["crew-0", "crew-1", "planner"]
    mine = [(a["agent_id"], a["project"]) for a in (await world.globex.http.get("/api/v1/agents")).json()["agents"]]
    assert mine == [("mine", "default")]


async def test_a_secret_is_in_its_own_answer_alone(world: World) -> None:
    """Nothing on the way may keep that answer, and no later one holds it."""
    made = await world.globex.http.post("/api/v1/keys", json={"name": "second", "role": "analyst", "expires_in_s": 60})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key_id = made.json()["key_id"]
    new = await world.globex.http.post(f"/api/v1/keys/{key_id}/rotate", json={"overlap_s": 60})
    shown = [await world.globex.http.get(p) for p in ("/api/v1/keys", f"/api/v1/keys/{key_id}")]
    ended = await world.globex.http.delete(f"/api/v1/keys/{key_id}")
    assert (new.status_code, ended.json()["state"]) == (200, "revoked")
    for secret in (made.json()["key"], new.json()["key"]):
        assert not [a for a in (*shown, ended) if secret in a.text or secret.rpartition("-")[2] in a.text]


async def test_a_query_that_is_not_known_is_refused_by_name(world: World) -> None:
    """As every other field: unknown, twice, or out of its bounds."""
    for path, wrong in (
        ("/api/v1/keys?limit=0", "limit"),
        ("/api/v1/keys?tenant=acme", "tenant"),
        ("/api/v1/keys?after=a&after=b", "after"),
        ("/api/v1/keys?after=%00", "after"),
        ("/api/v1/runs?status=done", "status"),
        ("/api/v1/runs?kind=a2a", "kind"),
    ):
        answer = await world.globex.http.get(path)
        assert (answer.status_code, [e["field"] for e in answer.json()["errors"]]) == (400, [wrong])


async def test_threat_22_an_odd_name_in_a_path_is_refused_as_such(world: World) -> None:
    """Control: Identifier.__new__. 400 that names the field, on every route that takes a name, before anything is looked up."""
    named = {"agent_id", "gang_id", "tenant_id"}
    for odd in ("%2e%2e", "..%00", "a%00", "a%0a", "%D0%B0", "Planner", "pl%EF%BD%81nner", "-a", "a" * 64):
        for route in ROUTES:
            if (place := next((name for name in named if f"{{{name}}}" in route), "")) and "PUT" not in route:
                who = world.operator if place == "tenant_id" else world.globex
                answer = await who.send(route, world.acme.ids | {place: odd})
                said = answer.status_code, [e["field"] for e in answer.json()["errors"]]
                assert said == (400, [place]), (route, odd)
