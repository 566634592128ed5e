"""Access tokens through a whole cluster: got by the command, used by an OpenAI client, narrowed, ended, and found nowhere."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
from openai import OpenAI

from cluster.identity.authorization_server import ACCESS_TOKEN, EXCHANGE
from tests.servers.cluster import RunningCluster, eventually


def sovereign(cluster: RunningCluster, *arguments: str, text: str = "") -> str:
    command = [sys.executable, "-m", "cli.main", *arguments]
    done = subprocess.run(command, env=cluster.environment, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_with(cluster: RunningCluster, token: str) -> int:
    return httpx.get(f"{cluster.state.http_url}/v1/models", headers={"authorization": f"Bearer {token}"}, timeout=30).status_code


def test_the_life_of_a_token(cluster: RunningCluster) -> None:
    """Threats 11, 12. It calls an agent, gives narrower ones and no wider, outlives a rotation, and ends within seconds."""
    assert cluster.register("with-token").status_code == 201
    url = cluster.state.http_url
    token = sovereign(cluster, "token", "--role", "caller").removesuffix("\n")
    assert token.count(".") == 2
    assert not token.strip(token)
    client = OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
    answer = client.chat.completions.create(model="with-token", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content
    assert httpx.delete(f"{url}/api/v1/agents/with-token", headers={"authorization": f"Bearer {token}"}).status_code == 403

    metadata = httpx.get(f"{url}/.well-known/oauth-authorization-server").json()
    assert metadata["issuer"] == url
    form = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN}
    narrow = httpx.post(metadata["token_endpoint"], data=form | {"scope": "sovereign:agents:list", "expires_in": "60"}).json()
    assert (narrow["scope"], narrow["expires_in"]) == ("sovereign:agents:list", 60)
    wider = httpx.post(metadata["token_endpoint"], data=form | {"scope": "sovereign:agents:remove"})
    assert (wider.status_code, wider.json()["error"]) == (400, "invalid_scope")

    key_id = json.loads(sovereign(cluster, "token", "rotate-key", "--json"))["kid"]
    after = json.loads(sovereign(cluster, "token", "--json"))["access_token"]
    assert [status_with(cluster, t) for t in (token, narrow["access_token"], after)] == [200, 200, 200]
    assert key_id in [key["kid"] for key in httpx.get(metadata["jwks_uri"]).json()["keys"]]

    sovereign(cluster, "token", "revoke", text=token)
    eventually(lambda: status_with(cluster, token), lambda status: status == 401)
    eventually(lambda: status_with(cluster, narrow["access_token"]), lambda status: status == 401)
    assert status_with(cluster, after) == 200
    (revoked,) = eventually(lambda: cluster.audit(action="identity:token:revoke"))
    issued = {row["object_id"] for row in eventually(lambda: cluster.audit(action="identity:token:issue"))}
    assert revoked["object_id"] in issued
    assert eventually(lambda: cluster.audit(action="identity:signing_key:rotate"))

    files = [p for folder in ("logs", "journal", "lake", "checkpoints") for p in (cluster.settings.home / folder).rglob("*")]
    written = [p.read_bytes() for p in [*files, *cluster.settings.home.glob("coordination*")] if p.is_file()]
    for secret in (token, narrow["access_token"], after):
        signature = secret.rpartition(".")[2].encode()
        assert not any(signature in text for text in written), "a token was written down"
