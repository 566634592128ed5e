"""Bad input of every kind: a clear 4xx that names the field, one audit fact, and a process that lives."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import httpx
import pytest

from tests.servers.cluster import RunningCluster, eventually
from tests.sizes import soak

REGISTRATION: dict[str, Any] = {
    "agent_id": "never",
    "capabilities": ["market_analysis"],
    "security_policy": {"resource_limits": {"cpu": "100m", "memory": "256Mi"}},
}
CHAT: dict[str, Any] = {"model": "never", "messages": [{"role": "user", "content": "x"}]}
AS_JSON = {"content-type": "application/json"}
DEEP = b'{"agent_id":' + b"[" * 200 + b"]" * 200 + b"}"


def limits(**changed: object) -> dict[str, Any]:
    return {"security_policy": {"resource_limits": {"cpu": "100m", "memory": "256Mi"} | changed}}


def refused_field(answer: httpx.Response) -> str:
    """Return the first field that a 400 names, in the shape that belongs to its path; both say why in words."""
    document = answer.json()
    if answer.request.url.path.startswith("/v1/"):
        assert document["error"]["code"] == "invalid_request"
        assert document["error"]["param"] in document["error"]["message"]
        return str(document["error"]["param"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["code"] == "invalid_request"
    assert all(error["message"] for error in document["errors"])
    return str(document["errors"][0]["field"])


@pytest.mark.parametrize("path", ["/api/v1/agents", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"model": "a", "model": "b", "messages": []}',
        b'{"agent_id": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"max_tokens": ' + b"9" * 400 + b"}",
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b"{",
    ],
    ids=["deep", "duplicate-keys", "lone-surrogate", "nan", "400-digits", "not-utf8", "empty", "null", "array", "cut"],
)
def test_bytes_that_are_no_request(cluster: RunningCluster, path: str, body: bytes) -> None:
    """Threat 19. 400 says that it is the body before anything is decided, and the process lives (control: parse_strict_json)."""
    answer = cluster.http.post(path, content=body, headers=AS_JSON)
    assert answer.status_code == 400, answer.text
    assert refused_field(answer) == "body", answer.text
    assert cluster.http.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "agent_id", ["../up", "%2e%2e", "a\x00b", "a\nb", "\u0430gent", "Agent", "-a", "a" * 64, "", 5, None], ids=ascii
)
def test_an_id_that_is_no_name(cluster: RunningCluster, agent_id: object) -> None:
    """Threat 22. Refused with 400 that names the field, in a body and in a path (control: Identifier)."""
    answer = cluster.http.post("/api/v1/agents", json=REGISTRATION | {"agent_id": agent_id})
    assert answer.status_code == 400
    assert [e["field"] for e in answer.json()["errors"]] == ["agent_id"]
    answer = cluster.http.post("/v1/chat/completions", json=CHAT | {"model": agent_id})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


@pytest.mark.parametrize("path", ["%2e%2e%2fsecrets", "..%2f..", "a%00b", "A", "%D0%B0gent"])
def test_an_id_in_a_path_that_is_no_name(cluster: RunningCluster, path: str) -> None:
    """Threat 22. However it is encoded, it names nothing but an agent."""
    answer = cluster.http.get(f"/api/v1/agents/{path}")
    assert answer.status_code in (400, 404), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (limits(memory="512m"), "security_policy.resource_limits.memory"),
        (limits(memory="-1"), "security_policy.resource_limits.memory"),
        (limits(memory="1e3"), "security_policy.resource_limits.memory"),
        (limits(memory=" 1"), "security_policy.resource_limits.memory"),
        (limits(memory="9" * 30), "security_policy.resource_limits.memory"),
        (limits(cpu="-100m"), "security_policy.resource_limits.cpu"),
        (limits(cpu="1e3"), "security_policy.resource_limits.cpu"),
        (limits(cpu=""), "security_policy.resource_limits.cpu"),
        (limits(gpu="1"), "security_policy.resource_limits.gpu"),
        ({"capabilities": "market_analysis"}, "capabilities"),
        ({"capabilities": [1]}, "capabilities.0"),
        ({"capabilities": None}, "capabilities"),
        ({"surprise": 1}, "surprise"),
        ({"security_policy": []}, "security_policy"),
        ({"compliance_requirements": {}}, "compliance_requirements"),
        ({"model": 7}, "model"),
    ],
)
def test_a_registration_with_a_wrong_field(cluster: RunningCluster, change: dict[str, Any], field: str) -> None:
    """Threats 27, 34. 400, the field by its path, and nothing is registered (controls: RegistrationRequest, parse_memory)."""
    answer = cluster.http.post("/api/v1/agents", json=REGISTRATION | change)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert any(e["field"].startswith(field) for e in answer.json()["errors"]), answer.json()
    assert cluster.http.get("/api/v1/agents/never").status_code == 404


def test_a_missing_field_is_refused(cluster: RunningCluster) -> None:
    """Threat 26. What must be said and is not is named, and nothing is assumed in its place."""
    answer = cluster.http.post("/api/v1/agents", json={"agent_id": "never"})
    assert answer.status_code == 400
    assert [e["field"] for e in answer.json()["errors"]] == ["capabilities"]


def test_a_capability_that_the_tenant_may_not_have_is_named(cluster: RunningCluster) -> None:
    """A denial is 403 and names every failed check with what to change."""
    answer = cluster.http.post("/api/v1/agents", json=REGISTRATION | {"capabilities": ["market_analysis", "payment_execution"]})
    assert answer.status_code == 403
    failed = {e["field"]: e["message"] for e in answer.json()["errors"]}
    assert any("payment_execution" in message for message in failed.values()), failed


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer nonsense", "Basic abc", "Bearer sk-sov-0000-00", "bearer  x"])
def test_no_credentials(cluster: RunningCluster, header: str) -> None:
    """Without a key that holds the answer is 401 in the same words, whatever is wrong with it."""
    for path in ("/api/v1/agents", "/v1/models"):
        answer = cluster.http.get(path, headers={"authorization": header})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "carries no valid credentials" in answer.text


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "ten", "1e2", "1.0", " 5", "\u0663", "00001", ""], ids=ascii)
def test_a_limit_that_is_none(cluster: RunningCluster, limit: str) -> None:
    """A page has 1 to 1000 agents; anything else is refused, and not rounded or replaced."""
    answer = cluster.http.get("/api/v1/agents", params={"limit": limit})
    assert answer.status_code == 400, answer.text
    assert refused_field(answer) == "limit"


@pytest.mark.parametrize("after", ["../up", "a\x00b", "Agent", "a" * 64, "\u0430gent", "a/b"], ids=ascii)
def test_a_cursor_that_is_no_name(cluster: RunningCluster, after: str) -> None:
    """Threat 22. A page begins after an agent, and what names none is refused (control: AgentId.parse in `list`)."""
    answer = cluster.http.get("/api/v1/agents", params={"after": after})
    assert answer.status_code == 400, answer.text
    assert refused_field(answer) == "after"


def test_a_query_parameter_that_is_not_known(cluster: RunningCluster) -> None:
    """It is refused by its name: a misspelled `limit` that did nothing would look as if it had."""
    answer = cluster.http.get("/api/v1/agents?limt=5")
    assert answer.status_code == 400
    assert refused_field(answer) == "limt"


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "1e3", "nan", "1,5", "10s", "9" * 7, "0.0001"], ids=ascii)
def test_a_deadline_that_is_none(cluster: RunningCluster, seconds: str) -> None:
    """A caller who asked for a deadline never gets another one in its place."""
    answer = cluster.http.post("/v1/chat/completions", json=CHAT, headers={"x-deadline-s": seconds})
    assert answer.status_code == 400, answer.text
    assert refused_field(answer) == "x-deadline-s"


def test_an_idempotency_key_that_is_too_long(cluster: RunningCluster) -> None:
    """255 characters are taken; one more is refused, and nothing is registered under it."""
    answer = cluster.http.post("/api/v1/agents", json=REGISTRATION, headers={"idempotency-key": "k" * 256})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]
    assert cluster.http.get("/api/v1/agents/never").status_code == 404
    taken = REGISTRATION | {"agent_id": "long-key"}
    assert cluster.http.post("/api/v1/agents", json=taken, headers={"idempotency-key": "k" * 255}).status_code == 201


def test_an_oversized_body_is_cut_off(cluster: RunningCluster) -> None:
    """413 as soon as it is known, whether its length was declared or it came in chunks."""
    big = b'{"x": "' + b"a" * (2 << 20) + b'"}'
    assert cluster.http.post("/api/v1/agents", content=big, headers=AS_JSON).status_code == 413

    def chunks() -> Any:
        for _ in range(64):
            yield b"a" * (64 << 10)

    assert cluster.http.post("/v1/chat/completions", content=chunks(), headers=AS_JSON).status_code == 413
    assert cluster.http.get("/health/live").status_code == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-16"])
def test_a_body_of_another_kind_is_named(cluster: RunningCluster, kind: str) -> None:
    """415 names the header, in the shape of its path, and nothing of the body is read."""
    answer = cluster.http.post("/api/v1/agents", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (415, "content-type")
    answer = cluster.http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "content-type")


def test_a_body_where_none_belongs(cluster: RunningCluster) -> None:
    """It is refused, and not left for another reader to find (control: bodies.refuse_body)."""
    answer = cluster.http.request("DELETE", "/api/v1/agents/never", json={"agent_id": "other"})
    assert (answer.status_code, refused_field(answer)) == (400, "body")


def test_a_gigabyte_that_nobody_asked_for_is_not_held(cluster: RunningCluster) -> None:
    """Threat 18. A client that sends on and on costs the gateway no memory (control: bodies.read_body's running size)."""
    host, port = cluster.replica()
    (gateway,) = cluster.processes("ServeReplica:sovereign")
    before, chunk = gateway.memory_info().rss, b"10000\r\n" + b"a" * (64 << 10) + b"\r\n"
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cluster.key}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    most = before
    with socket.create_connection((host, port), timeout=10) as raw, contextlib.suppress(OSError):
        raw.sendall(head.encode())
        for sent in range(soak(1_000, 16_000)):
            raw.sendall(chunk)
            if sent % 50 == 0:
                most = max(most, gateway.memory_info().rss)
    assert most - before < 32 << 20
    assert cluster.http.get("/health/live").status_code == 200


def test_headers_that_two_readers_would_read_differently(cluster: RunningCluster) -> None:
    """A second Authorization, or two lengths, is a 400 and not a guess."""
    host, port = cluster.state.http_url.removeprefix("http://").split(":")
    twice = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cluster.key}\r\nAuthorization: Bearer b\r\n"
    both = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n"
    for request in (twice, both):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall((request + "Connection: close\r\n\r\n").encode())
            assert raw.recv(64).split()[1] == b"400"


def test_a_client_cannot_set_the_time_out_of_serve(cluster: RunningCluster) -> None:
    """A header that Ray Serve would obey is dropped on the way in, in every case (control: haproxy_launcher.SERVE_HEADERS)."""
    for name in ("x-request-timeout-seconds", "X-Request-Timeout-Seconds"):
        assert cluster.http.get("/v1/models", headers={name: "0.000001"}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "x-request-id",
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "x_session_id",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
        "traceparent",
        "tracestate",
        "authorization",
        "x-deadline-s",
        "idempotency-key",
        "content-type",
        "content-encoding",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-proto",
    ],
)
@pytest.mark.parametrize("value", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"ok, \xff"], ids=ascii)
def test_a_header_of_any_bytes_is_refused_or_ignored(cluster: RunningCluster, header: str, value: bytes) -> None:
    """No header's bytes make the way in fail: the answer has our shape, an id, and a status below 500."""
    answer = cluster.http.post("/v1/chat/completions", json=CHAT, headers={header: value})
    refused = {"authorization": 401, "x-deadline-s": 400, "idempotency-key": 400, "content-encoding": 415, "content-type": 415}
    wanted = refused.get(header, 404)
    assert answer.status_code == wanted, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [[b"\xff"], [b"a b"], [b"a" * 65], [b""], [b"a", b"b"], [b"a,b"]],
    ids=["bytes", "space", "long", "empty", "two", "list"],
)
def test_a_request_id_that_is_none_is_replaced(cluster: RunningCluster, sent: list[bytes]) -> None:
    """One id of our own leads from the answer to its one audit fact (control: haproxy_launcher.CLEANED)."""
    answer = cluster.http.get("/v1/nothing", headers=[(b"x-request-id", value) for value in sent])
    assert answer.status_code == 404, answer.text
    (given,) = set(answer.headers.get_list("x-request-id"))
    assert len(given) == 36
    assert len(eventually(lambda: cluster.audit(request_id=given))) == 1


def test_unknown_paths_and_methods_are_told_apart(cluster: RunningCluster) -> None:
    """404 and 405, each as a problem document."""
    assert cluster.http.get("/nothing").json()["code"] == "not_found"
    assert cluster.http.put("/api/v1/agents").json()["code"] == "method_not_allowed"
    assert cluster.http.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_a_refusal_leaves_one_audit_fact(cluster: RunningCluster) -> None:
    """The request's id leads to exactly one row in the audit log, with the reason and the fields."""
    cluster.http.post("/api/v1/agents", json=REGISTRATION | {"surprise": 1}, headers={"x-request-id": "look-for-me"})
    rows = eventually(lambda: cluster.audit(request_id="look-for-me"))
    assert [(r["action"], r["outcome"], r["reason"]) for r in rows] == [("gateway:request:refuse", "denied", "invalid_request")]
    assert json.loads(rows[0]["detail_json"])["fields"] == ["surprise"]
