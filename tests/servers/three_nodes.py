"""A head and two nodes that join it on this machine, started by the commands that `ray-cluster.yaml` gives Ray's launcher."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from actors.joined_node import leave
from actors.run_state import node_states, read_state
from actors.topology import stop
from cluster.settings import PROJECT_ROOT, Settings
from tests.servers.cluster import RunningCluster

YAML = PROJECT_ROOT / "ray-cluster.yaml"


def launcher_file() -> dict[str, Any]:
    """Return what is in `ray-cluster.yaml`."""
    read: dict[str, Any] = yaml.safe_load(YAML.read_text())
    return read


@contextlib.contextmanager
def three_nodes(folder: Path, labels: tuple[str, str], **settings: object) -> Iterator[RunningCluster]:
    """Run the file's commands as its launcher does, in shells with the home that it expects; the nodes get `labels`."""
    (folder / "sovereign").symlink_to(PROJECT_ROOT)
    home = folder / "state"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chosen = {"http_port": 0, "seal_interval_s": 0.2, "ray_port": port, "home": home} | settings
    environment = os.environ | {f"SOVEREIGN_{k.upper()}": str(v) for k, v in chosen.items()} | {"HOME": str(folder)}
    file = launcher_file()
    resolved = Settings.load(**chosen)
    try:
        run(file["head_start_ray_commands"], environment)
        with ThreadPoolExecutor() as together:
            joining = [
                together.submit(
                    run,
                    file["worker_start_ray_commands"],
                    environment | {"RAY_HEAD_IP": file["provider"]["head_ip"], "SOVEREIGN_NODE_LABELS": label},
                )
                for label in labels
            ]
        for joined in joining:
            joined.result()
        state = read_state(resolved)
        assert state is not None
        cluster = RunningCluster(resolved, state, (resolved.secret_dir / "api-key").read_text().strip())
        with cluster.http:
            yield cluster
    finally:
        with ThreadPoolExecutor() as together:
            list(together.map(lambda state: leave(resolved.of_node(state.name)), node_states(resolved)))
        stop(resolved)


def run(commands: list[str], environment: dict[str, str]) -> None:
    """Run a node's start commands, one after the other."""
    for command in commands:
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
