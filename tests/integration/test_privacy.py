"""Who can reach a cluster: this machine alone, and its control plane with the token alone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from actors.listeners import assert_private, is_loopback, listeners
from actors.marked import marked
from actors.topology import run
from cluster.errors import ConfigurationError
from cluster.settings import Settings
from tests.servers.cluster import RunningCluster


@pytest.fixture
def dashboard(cluster: RunningCluster) -> Iterator[httpx.Client]:
    """Ray's own HTTP server, without credentials."""
    url = f"http://{cluster.settings.host}:{cluster.state.ports['dashboard']}"
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client


def token(cluster: RunningCluster) -> str:
    return (cluster.settings.secret_dir / "ray-token").read_text().strip()


def test_every_listener_of_a_cluster_is_on_loopback(cluster: RunningCluster) -> None:
    """Threat 44. Read from the kernel: Ray, Serve, HAProxy with its statistics, agents and metrics."""
    cluster.register("listening", model="scripted:ok")
    assert cluster.ask("listening").status_code == 200
    found = listeners(p.pid for p in marked(cluster.state.cluster_id))
    ports = {listener.port for listener in found}
    assert [x for x in found if not is_loopback(x.address)] == []
    assert {cluster.state.ports[name] for name in ("http", "gcs", "dashboard", "haproxy_stats", "haproxy_metrics")} <= ports


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_a_start_on_an_open_address_is_refused(host: str, tmp_path: Path) -> None:
    """Threat 44. Without SOVEREIGN_EXPOSE nothing is started, nothing is written, and the setting is named."""
    home = tmp_path / "home"
    settings = Settings.load(home=home, host=host)
    with pytest.raises(ConfigurationError, match="SOVEREIGN_HOST") as refused:
        run(settings, on_progress=lambda _: None, on_ready=lambda _: None)
    assert "SOVEREIGN_EXPOSE" in refused.value.hint
    assert not home.exists()


def test_an_open_listener_is_named(tmp_path: Path) -> None:
    """Threat 44. What a process listens on is read from the kernel and refused, unless the operator asked to be reached."""
    settings = Settings.load(home=tmp_path)
    with socket.socket() as open_one:
        open_one.bind(("0.0.0.0", 0))
        open_one.listen()
        with pytest.raises(ConfigurationError, match=f"0.0.0.0:{open_one.getsockname()[1]}"):
            assert_private(settings, [os.getpid()])
        assert_private(settings.model_copy(update={"expose": True}), [os.getpid()])
    assert_private(settings, [os.getpid()])


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/api/serve/applications/", "/nodes?view=summary"])
def test_the_control_plane_wants_the_token(dashboard: httpx.Client, cluster: RunningCluster, path: str) -> None:
    """Threat 43. Without a token 401, with a wrong one 403, and nothing is told; with the right one an answer."""
    assert dashboard.get(path).status_code == 401
    assert dashboard.get(path, headers={"authorization": f"Bearer {'0' * 64}"}).status_code == 403
    assert dashboard.get(path, headers={"authorization": f"Bearer {token(cluster)}"}).status_code == 200


def test_a_job_without_the_token_does_not_run(dashboard: httpx.Client, cluster: RunningCluster, tmp_path: Path) -> None:
    """Threat 43. The Jobs API would run any command: refused, and no job is listed afterwards."""
    trace = tmp_path / "ran"
    body = {"entrypoint": f"touch {trace}"}
    assert dashboard.post("/api/jobs/", json=body).status_code == 401
    assert dashboard.post("/api/jobs/", json=body, headers={"authorization": "Bearer nonsense"}).status_code == 403
    jobs = dashboard.get("/api/jobs/", headers={"authorization": f"Bearer {token(cluster)}"}).json()
    assert [job for job in jobs if str(trace) in job["entrypoint"]] == []
    assert not trace.exists()


def test_an_agents_runtime_env_is_empty(dashboard: httpx.Client, cluster: RunningCluster) -> None:
    """An agent with an environment of its own would miss the warm pool, and could bring code that nobody admitted."""
    cluster.register("bare-env", model="scripted:ok")
    assert cluster.ask("bare-env").status_code == 200
    answer = dashboard.get("/api/v0/actors?detail=1&limit=1000", headers={"authorization": f"Bearer {token(cluster)}"})
    actors = [a for a in answer.json()["data"]["result"]["result"] if a["class_name"] == "AgentActor" and a["state"] == "ALIVE"]
    assert actors
    for actor in actors:
        environment = actor["serialized_runtime_env"] or "{}"
        assert json.loads(environment) == {}, actor["name"]
