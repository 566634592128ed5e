"""A real Envoy before the gateway, by deploy/envoy/envoy.yaml: TLS, tokens, rates, and nothing of a call lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.servers.cluster import RunningCluster
from tests.servers.envoy import Envoy, running_envoy

BURST = 40
REQUEST_ID = "0199aaaa-1111-7000-8000-00000000beef"


@pytest.fixture(scope="module")
def envoy(cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    port = urlsplit(cluster.state.http_url).port
    assert port is not None
    with running_envoy(tmp_path_factory.mktemp("envoy"), port, cluster.state.http_url, burst=BURST) as envoy:
        yield envoy


@pytest.fixture(scope="module")
def token(cluster: RunningCluster) -> str:
    form = {"grant_type": "client_credentials"}
    answer = httpx.post(f"{cluster.state.http_url}/oauth/token", data=form, headers=cluster.headers)
    return str(answer.json()["access_token"])


def client(envoy: Envoy, credential: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    return httpx.Client(base_url=envoy.url, verify=envoy.trust, headers=headers, timeout=60)


def ask(http: httpx.Client, **more: object) -> httpx.Response:
    body = {"model": "behind-envoy", "messages": [{"role": "user", "content": "good day"}]} | more
    return http.post("/v1/chat/completions", json=body)


def test_calls_pass_whole_and_streamed(cluster: RunningCluster, envoy: Envoy, token: str) -> None:
    """With a token and with a key, over TLS; the request id is the client's on both ends."""
    cluster.register("behind-envoy", model="scripted:echo")
    for credential in (token, cluster.key):
        with client(envoy, credential) as http:
            answer = ask(http)
            assert answer.json()["choices"][0]["message"]["content"] == "echo: good day"
            assert ask(http, stream=True).text.rstrip().endswith("data: [DONE]")
            said = http.get("/api/v1/agents", headers={"x-request-id": REQUEST_ID})
            assert said.headers.get_list("x-request-id") == [REQUEST_ID]


def test_a_token_that_is_none_does_not_reach_the_gateway(cluster: RunningCluster, envoy: Envoy, token: str) -> None:
    """Envoy itself refuses a token with another signature; without any credential the gateway does."""
    head, claims, _ = token.split(".")
    with client(envoy, f"{head}.{claims}.{'A' * 86}") as http:
        forged = ask(http)
    assert (forged.status_code, forged.headers["content-type"]) == (401, "application/problem+json")
    assert "refused the request" in forged.json()["detail"]
    with client(envoy, "") as http:
        assert http.get("/api/v1/agents").json()["code"] == "unauthenticated"


def test_a_credential_that_sends_too_much_is_held_back_and_no_other(cluster: RunningCluster, envoy: Envoy, token: str) -> None:
    """429 with Retry-After for the one; the other goes on."""
    with client(envoy, "not-a-key-of-anybody") as http:
        answers = [http.get("/health/live") for _ in range(BURST * 2)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert answers[0].status_code == 200
    with client(envoy, token) as http:
        assert http.get("/health/live").status_code == 200
