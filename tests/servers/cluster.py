"""A real cluster for tests: started by the command that users type, on free ports, under a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import reprlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from actors.marked import marked
from actors.run_state import ClusterState, read_state
from actors.topology import stop
from cluster.journal.segment import decode_header
from cluster.settings import Settings
from cluster.telemetry.metrics import render

T = TypeVar("T")


@dataclass
class RunningCluster:
    """A cluster that is ready, and the usual things that tests ask of it."""

    settings: Settings
    state: ClusterState
    key: str
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.state.http_url, headers=self.headers, timeout=60)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find this cluster."""
        return os.environ | {"SOVEREIGN_HOME": str(self.settings.home)}

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.state.http_url}/v1", api_key=self.key, max_retries=0, **options)

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.state.http_url}/v1", api_key=self.key, max_retries=0, **options)

    def register(self, agent_id: str, *, cpu: str = "500m", memory: str = "256Mi", **more: Any) -> httpx.Response:
        body: dict[str, Any] = {
            "agent_id": agent_id,
            "capabilities": ["market_analysis"],
            "model": "scripted:steps",
            "security_policy": {"resource_limits": {"cpu": cpu, "memory": memory}},
        }
        return self.http.post("/api/v1/agents", json=body | more)

    def ask(self, agent_id: str, text: str = "hello", **more: Any) -> httpx.Response:
        body = {"model": agent_id, "messages": [{"role": "user", "content": text}]}
        return self.http.post("/v1/chat/completions", json=body | more)

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the cluster's processes whose title contains `name` (Ray titles its workers)."""
        found = []
        for process in marked(self.state.cluster_id):
            with contextlib.suppress(psutil.Error):
                if any(name in part for part in process.cmdline()):
                    found.append(process)
        return found

    def journal_bytes(self, agent_id: str) -> int:
        """Return how much of facts the agent has written: it grows when a call is admitted, and when it ends."""
        segments = (self.settings.journal_dir / f"agent.default.{agent_id}").rglob("*.seg")
        return sum(len(facts_of(segment.read_bytes())) for segment in segments)

    def replica(self) -> tuple[str, int]:
        """Return where HAProxy finds the gateway's replica: a test that must not have HAProxy between goes straight there."""
        (config,) = self.settings.run_dir.glob("h/*/haproxy.tight.cfg")
        found = re.search(r"^\s*server SERVE_REPLICA\S+ (\S+):(\d+) ", config.read_text(), re.M)
        assert found is not None
        return found[1], int(found[2])

    def calls_held(self) -> float:
        """Return how many calls the gateway says that it holds."""
        families = text_string_to_metric_families(render(self.settings.metrics_dir).decode())
        return sum(sample.value for family in families if family.name == "sovereign_queue_depth" for sample in family.samples)

    def usage(self, agent_id: str) -> list[dict[str, Any]]:
        """Return the agent's usage rows in the lake, raw and with every duplicate."""
        import pyarrow.parquet as pq

        rows = []
        folder = self.settings.home / "lake" / "usage" / "raw" / "v1"
        for path in sorted(folder.rglob("*.parquet")):
            rows += [r for r in pq.read_table(path, partitioning=None).to_pylist() if r["agent_id"] == agent_id]
        return rows

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """Return the audit rows in the lake whose columns are as `wanted`."""
        import pyarrow.parquet as pq

        rows = []
        folder = self.settings.home / "lake" / "audit" / "raw" / "v1"
        for path in sorted(folder.rglob("*.parquet")):
            table = pq.read_table(path, partitioning=None).to_pylist()
            rows += [r for r in table if all(r[k] == v for k, v in wanted.items())]
        return rows


def facts_of(segment: bytes) -> bytes:
    """Return what follows the header, which is there before any fact."""
    header = decode_header(segment)
    return segment[header[1] :] if header else b""


def eventually(look: Callable[[], T], holds: Callable[[T], bool] = bool, *, within_s: float = 30) -> T:
    """Return what `look` sees once it `holds`; fails with the last sight when it does not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not holds(seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s; last seen: {reprlib.repr(seen)}"
        time.sleep(0.05)
    return seen


@contextlib.contextmanager
def running_cluster(home: Path, **settings: object) -> Iterator[RunningCluster]:
    """Start a cluster under `home` with these settings, and end it."""
    chosen = {"http_port": 0, "seal_interval_s": 0.2} | settings
    environment = os.environ | {f"SOVEREIGN_{k.upper()}": str(v) for k, v in chosen.items()} | {"SOVEREIGN_HOME": str(home)}
    command = [sys.executable, "-m", "cli.main", "up", "--detach"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    resolved = Settings.load(home=home, **chosen)
    try:
        state = read_state(resolved)
        assert state is not None
        cluster = RunningCluster(resolved, state, (resolved.secret_dir / "api-key").read_text().strip())
        with cluster.http:
            yield cluster
    finally:
        stop(resolved)
