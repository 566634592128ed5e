"""Identity over HTTP: tokens for keys, calls with tokens, and refusals in their one form, each on record once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from actors.invoker import Invoker
from cluster.clock import FakeClock
from cluster.identity.authorization_server import ACCESS_TOKEN, EXCHANGE
from cluster.identity.key_set import ALGORITHMS
from cluster.identity.remote_key_set import REFETCH_US, RemoteKeySet
from cluster.identity.roles import ROLE_SCOPES, Role, Scope
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Fact
from cluster.journal.gate import SAMPLE_US
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import Application, create_app
from serve_apps.edge import Edge
from tests.gates import open_gate
from tests.tokens import RSA, THEIRS, Identity

SECOND = 1_000_000
PUBLIC = {
    "GET /health/live",
    "GET /health/ready",
    # LangGraph's word for the first of them.
    "GET /langgraph/ok",
    "GET /.well-known/jwks.json",
    "GET /.well-known/oauth-authorization-server",
    # Who asks there shows a key or a token in a form.
    "POST /oauth/token",
    "POST /oauth/revoke",
}


class Door:
    """A gateway's application over real identity; behind it nobody, who counts what gets through."""

    def __init__(self, identity: Identity, home: Path) -> None:
        self.identity = identity
        self.facts: list[AuditEvent] = []
        self.synced = 0
        self.asked: list[tuple[str, Any]] = []
        behind = cast("Any", self)
        self.edge = Edge(
            Settings(home=home),
            authenticator=identity.authenticator,
            governance=behind,
            invoker=Invoker(behind, places=64),
            journal=behind,
            gate=open_gate(home),
            metrics=Metrics(home, "gateway"),
            clock=identity.clock,
        )
        identity.server._record = self.edge.keep
        self.app: Application = create_app(self.edge, identity.server)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")

    def append(self, fact: Fact) -> None:
        self.facts.append(AuditEvent.from_body(fact.body))

    def sync(self) -> None:
        self.synced += 1

    async def call(self, method: str, *arguments: Any, **_: Any) -> dict[str, Any]:
        self.asked.append((method, arguments))
        return {"agents": [], "next": "", "live": [], "answer": {}, "created": True}

    async def get(self, token: str, path: str = "/api/v1/agents") -> httpx.Response:
        return await self.http.get(path, headers={"authorization": f"Bearer {token}"})


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[Identity]:
    identity = Identity(tmp_path, FakeClock())
    yield identity
    identity.close()


@pytest.fixture
async def door(identity: Identity, tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(identity, tmp_path / "home")
    async with door.http:
        yield door


async def new_token(door: Door, scopes: frozenset[Scope] = ROLE_SCOPES[Role.CALLER], **fields: Any) -> str:
    text, key = door.identity.api_key(scopes=scopes)
    asked = {"grant_type": "client_credentials"} | fields
    answer = await door.http.post("/oauth/token", data=asked, auth=(key.key_id, text))
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


async def test_a_token_opens_what_its_key_opens(door: Door) -> None:
    """Got by OAuth's usual form, sent as a bearer; its principal is what reaches governance."""
    token = await new_token(door)
    assert (await door.get(token)).status_code == 200
    ((method, arguments),) = door.asked
    assert method == "list"
    assert '"acme"' in arguments[0]
    (fact,) = door.facts
    assert (fact.action, fact.outcome.value, door.synced) == (AuditAction.TOKEN_ISSUE, "allowed", 1)


async def test_an_answer_with_a_token_is_kept_by_nobody(door: Door) -> None:
    """As RFC 6749 has it; while keys and metadata may be kept for a minute."""
    text, _ = door.identity.api_key()
    answer = await door.http.post(
        "/oauth/token", data={"grant_type": "client_credentials"}, headers={"authorization": f"Bearer {text}"}
    )
    assert answer.headers["cache-control"] == "no-store"
    for path in ("jwks.json", "oauth-authorization-server"):
        assert "max-age=60" in (await door.http.get(f"/.well-known/{path}")).headers["cache-control"]


async def test_metadata_leads_to_what_is_there(door: Door) -> None:
    """Every address that it names answers, and the keys that it leads to are those of the tokens."""
    metadata = (await door.http.get("/.well-known/oauth-authorization-server")).json()
    url = metadata["issuer"]
    paths = [metadata[name].removeprefix(url) for name in ("token_endpoint", "revocation_endpoint", "jwks_uri")]
    assert [(await door.http.post(p)).status_code for p in paths[:2]] == [415, 415]
    keys = (await door.http.get(paths[2])).json()["keys"]
    assert keys == door.identity.keys.public_jwks()["keys"]
    assert all("d" not in key for key in keys)
    assert set(metadata["scopes_supported"]) == set(Scope)


async def test_each_refused_token_is_one_401_in_one_form(door: Door) -> None:
    """WWW-Authenticate, a problem document without an oracle, and one fact that says why to operators alone."""
    token = await new_token(door)
    door.facts.clear()
    bodies = set()
    for text in (
        "nonsense",
        token[:-4] + "AAAA",
        "a" * 20_000,
        door.identity.token(RSA, aud="other"),
        "sk-sov-0-0",
        token + ".x",
    ):
        answer = await door.get(text)
        if answer.status_code == 503:  # the other issuer's keys are not here yet
            answer = await door.get(text)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == 'Bearer realm="sovereign"'
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem.pop("request_id") == answer.headers["x-request-id"]
        bodies.add(str(problem))
    assert len(bodies) == 1
    assert [(f.action, f.reason) for f in door.facts] == [(AuditAction.GATEWAY_REFUSE, "unauthenticated")] * 6
    assert [f.detail.get("why") for f in door.facts][1:4:2] == ["signature or form: BadSignatureError", "audience"]
    assert not door.asked


async def test_openai_clients_hear_of_a_refused_token_in_their_own_shape(door: Door) -> None:
    """An application that sends a token as its API key."""
    call = {"model": "planner", "messages": [{"role": "user", "content": "x"}]}
    answer = await door.http.post("/v1/chat/completions", json=call, headers={"authorization": "Bearer a.b.c"})
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


async def test_refusals_of_oauth_have_its_members_too(door: Door) -> None:
    """A problem document in which OAuth's clients find `error` and `error_description`, each on record once."""
    text, key = door.identity.api_key(scopes=ROLE_SCOPES[Role.CALLER])
    grant = {"grant_type": "client_credentials"}
    basic = (key.key_id, text)
    token = await new_token(door)
    exchange = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN}
    door.facts.clear()
    refused: list[tuple[dict[str, Any], Any, int, str]] = [
        (grant, (key.key_id, "wrong"), 401, "invalid_client"),
        (grant | {"scope": Scope.AUDIT_READ}, basic, 400, "invalid_scope"),
        (exchange | {"scope": Scope.AUDIT_READ}, None, 400, "invalid_scope"),
        (exchange | {"expires_in": 901}, None, 400, "invalid_request"),
        (exchange | {"subject_token": "x"}, None, 400, "invalid_request"),
        ({"grant_type": "password"}, basic, 400, "unsupported_grant_type"),
    ]
    for fields, auth, status, code in refused:
        answer = await door.http.post("/oauth/token", data=fields, auth=auth)
        assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
        assert answer.json()["error_description"] == answer.json()["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("www-authenticate" in answer.headers) == (status == 401)
    assert [f.action for f in door.facts] == [AuditAction.GATEWAY_REFUSE] * len(refused)


async def test_a_form_of_another_kind_or_too_large_is_refused(door: Door) -> None:
    """Before anything of it is parsed."""
    assert (await door.http.post("/oauth/token", json={"grant_type": "client_credentials"})).status_code == 415
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await door.http.post("/oauth/token", content=b"a=" + b"a" * (65 << 10), headers=form)).status_code == 413


async def test_a_revoked_token_is_refused(door: Door) -> None:
    """Within two seconds, by every gateway; and to revoke what is no token is no error."""
    text, key = door.identity.api_key(scopes=ROLE_SCOPES[Role.CALLER])
    auth = (key.key_id, text)
    token = (await door.http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=auth)).json()["access_token"]
    assert (await door.get(token)).status_code == 200
    for each in (token, "nonsense"):
        assert (await door.http.post("/oauth/revoke", data={"token": each}, auth=auth)).status_code == 200
    door.identity.clock.advance(2 * SECOND)
    assert (await door.get(token)).status_code == 401
    assert [f.action for f in door.facts].count(AuditAction.TOKEN_REVOKE) == 1
    assert (await door.http.post("/oauth/revoke", data={"token": token})).status_code == 401


async def test_nothing_is_given_while_nothing_can_be_recorded(door: Door) -> None:
    """At the journal's limit a token is a 503, as everything that is new."""
    text, key = door.identity.api_key()
    door.identity.clock.advance(100 * SAMPLE_US)
    door.edge.gate._limit_bytes = 0
    door.edge.gate._look_at_us = 0
    answer = await door.http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=(key.key_id, text))
    assert (answer.status_code, answer.json()["code"]) == (503, "journal_full")
    assert "access_token" not in answer.text


async def test_the_first_token_of_another_issuer_waits_for_its_keys(door: Door) -> None:
    """The request that asks for them is answered with them, and not refused: it begins again when they are here."""
    assert (await door.get(door.identity.token(scope=Scope.AGENTS_LIST))).status_code == 200
    assert len(door.identity.fetched) == 1


async def test_while_another_issuer_is_away_its_tokens_are_a_503(identity: Identity, tmp_path: Path) -> None:
    """With a time to come back; API keys and our own tokens go on."""

    def away(_: str) -> bytes:
        raise OSError("no route")

    remote = RemoteKeySet("https://login.example/jwks", THEIRS, identity.clock, algorithms=ALGORITHMS, max_age_s=60, fetch=away)
    other = Identity(tmp_path, identity.clock, remote)
    door = Door(other, tmp_path / "home")
    async with door.http:
        for _ in range(2):
            answer = await door.get(other.token())
            assert (answer.status_code, answer.json()["code"]) == (503, "issuer_away")
            assert int(answer.headers["retry-after"]) == REFETCH_US // SECOND
        assert (await door.get(await new_token(door))).status_code == 200
        text, _ = other.api_key()
        assert (await door.get(text)).status_code == 200
    other.close()


async def test_a_slow_issuer_stops_nobody_else(identity: Identity, tmp_path: Path) -> None:
    """While its keys are on their way, every other request is answered."""
    go = threading.Event()

    def slow(url: str) -> bytes:
        go.wait(30)
        return identity._fetch(url)

    remote = RemoteKeySet("https://login.example/jwks", THEIRS, identity.clock, algorithms=ALGORITHMS, max_age_s=60, fetch=slow)
    other = Identity(tmp_path, identity.clock, remote)
    door = Door(other, tmp_path / "home")
    async with door.http, asyncio.timeout(30):
        waiting = asyncio.ensure_future(door.get(other.token(scope=Scope.AGENTS_LIST)))
        assert (await door.get(await new_token(door))).status_code == 200
        assert not waiting.done()
        go.set()
        assert (await waiting).status_code == 200
    other.close()


def routes(app: Application) -> list[tuple[str, str]]:
    api: FastAPI = app._app
    found = [(method, route.path) for route in api.routes for method in getattr(route, "methods", ()) or ()]
    return [(m, p.replace("{agent_id}", "planner")) for m, p in found if m != "HEAD" and p != "/openapi.json"]


async def test_every_route_asks_who_and_for_which_scope(door: Door) -> None:
    """Without credentials 401, with a token that has no scope 403, and nobody behind is asked; but for what is public."""
    _, key = door.identity.api_key()
    bare = door.identity.issue(key, scopes=frozenset(), life_s=None).text
    closed = [(m, p) for m, p in routes(door.app) if f"{m} {p}" not in PUBLIC]
    assert len(closed) >= 7
    for method, path in closed:
        assert (await door.http.request(method, path)).status_code == 401, path
        answer = await door.http.request(method, path, headers={"authorization": f"Bearer {bare}"})
        assert answer.status_code == 403, path
        assert "lacks the scope" in answer.text
    assert not door.asked
