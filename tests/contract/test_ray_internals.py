"""The internal interfaces of Ray that we use are what we take them for; a new Ray that moves them turns this red."""

from __future__ import annotations

import subprocess
import sys

from tests.servers.cluster import RunningCluster, eventually

PRESTART = """
from actors.ray_connection import connect_to
from actors.ray_internals import prestart_workers
from cluster.settings import Settings
connect_to(Settings.load())
prestart_workers(2)
"""


def test_prestart_adds_idle_workers(cluster: RunningCluster) -> None:
    """The node manager takes the request, authenticated, and idle workers appear."""
    before = len(cluster.processes("ray::IDLE"))
    done = subprocess.run(
        [sys.executable, "-c", PRESTART], env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: len(cluster.processes("ray::IDLE")), lambda n: n > before)


def test_the_pool_is_refilled_after_a_take(cluster: RunningCluster) -> None:
    """A wake takes an idle worker, and after a moment another one stands ready in its place."""
    cluster.register("taker", model="scripted:ok")
    idle = {p.pid for p in eventually(lambda: cluster.processes("ray::IDLE"))}
    assert cluster.ask("taker").status_code == 200
    taken = {p.pid for p in cluster.processes("AgentActor")}
    assert idle & taken, "the agent did not start in an idle worker"
    eventually(lambda: {p.pid for p in cluster.processes("ray::IDLE")} - idle)
