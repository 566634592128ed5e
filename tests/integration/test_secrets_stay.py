"""A secret that a reference names is used and comes up nowhere else: no log, fact, row, argument, environment or answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx

from actors.marked import marked
from tests.servers.cluster import RunningCluster, eventually


def everything(cluster: RunningCluster) -> Iterator[tuple[str, bytes]]:
    """Yield what is written of the cluster, and what its processes were started with, each with where it is."""
    for folder in (cluster.settings.home, cluster.settings.run_dir):
        for path in folder.rglob("*"):
            if path.is_file():
                with contextlib.suppress(OSError):
                    yield str(path), path.read_bytes()
    for process in marked(cluster.state.cluster_id):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                yield f"{name} of {process.pid}", Path(f"/proc/{process.pid}/{name}").read_bytes()


def test_a_providers_key_stays_with_who_needs_it(cluster: RunningCluster) -> None:
    """A call by that key fails for want of a network, another runs a tool; then everything that is left is read.

    Controls: cluster/identity/secrets.py Secret, check_reference; cluster/wiring.py build_brain, which alone resolves it.
    """
    reference = cluster.settings.model_keys.partition("=")[2]
    planted = Path(reference.removeprefix("file:")).read_bytes()
    cluster.register("keyed", model="openai:gpt-5-mini", memory="512Mi").raise_for_status()
    failed = cluster.ask("keyed")
    assert failed.status_code == 502, failed.text
    policy = {"allowed_tools": ["data_analysis"], "resource_limits": {"cpu": "100m", "memory": "512Mi"}}
    cluster.register("tooled", security_policy=policy).raise_for_status()
    tool = {"name": "data_analysis", "args": {"rows": [{"x": 1}], "sql": "select x from data"}}
    done = cluster.ask("tooled", json.dumps({"script": [{"call_tool": tool}, {"say": "{tool}"}]}))
    assert done.status_code == 200, done.text
    eventually(lambda: cluster.usage("keyed"))
    shown = [(str(a.url), a.content) for a in (failed, done, cluster.http.get("/api/v1/agents/keyed"))]
    shown.append(("/metrics", httpx.get(cluster.state.metrics_url, timeout=10).content))
    seen = [*shown, *everything(cluster)]
    assert not [where for where, what in seen if planted in what]
    assert any(reference.encode() in what for _, what in seen)  # the look was at the right things
