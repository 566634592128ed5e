"""Actors that no record stands behind, on a real cluster: what an operator's driver and a job create past governance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.servers.cluster import RunningCluster, eventually

# Creates actors in every way that there is, and says when the first of them is at work; then waits until all are gone.
DRIVER = """
import json, sys, time
import ray
from actors.ray_connection import connect_to
from actors.ray_internals import ControlStore
from cluster.settings import Settings

connect_to(Settings.load())

class Stray:
    def pid(self):
        import os
        return os.getpid()

stray = ray.remote(num_cpus=0)(Stray)
detached = {"lifetime": "detached", "max_restarts": -1}
made, pid = [], 0
while not pid:
    began = time.monotonic()
    made.append(stray.remote())
    try:
        pid = ray.get(made[-1].pid.remote())
    except ray.exceptions.ActorDiedError:
        pass  # it was found before a busy machine had begun it
made += [
    stray.options(name="mine").remote(),
    stray.options(name="mine", namespace="elsewhere", **detached).remote(),
    stray.options(name="agent:default:01a205d0-0c96-7d59-b296-17f4e53fa9e4", namespace="sovereign", **detached).remote(),
    stray.options(name="SERVE_REPLICA::mine", namespace="serve", **detached).remote(),
]
ids = {a._actor_id.hex() for a in made}
store = ControlStore()
while {a.actor_id for a in store.live_actors()} & ids:
    time.sleep(0.05)
print(json.dumps({"ids": sorted(ids), "pid": pid, "job_id": store.own_job, "took_s": time.monotonic() - began}))
"""
# Has an actor until it is told to end, and says then whether that is still the same one.
JOB = """
import os, pathlib, sys, time
import ray
ray.init(log_to_driver=False)

class Worker:
    def pid(self):
        import os
        return os.getpid()

worker = ray.remote(num_cpus=0)(Worker).remote()
folder = pathlib.Path(sys.argv[1])
first = ray.get(worker.pid.remote())
(folder / "draft").write_text(str(first))
(folder / "draft").rename(folder / "pid")
while not (folder / "end").exists():
    time.sleep(0.05)
assert ray.get(worker.pid.remote()) == first
"""


def submit(cluster: RunningCluster, client: httpx.Client, tenant: str, script: Path) -> str:
    """Submit the script as a job of the tenant, as `ray job submit` does."""
    body = {"entrypoint": f"{sys.executable} {script} {script.parent}", "metadata": {"sovereign.tenant": tenant}}
    return str(client.post("/api/jobs/", json=body).raise_for_status().json()["submission_id"])


def parts(cluster: RunningCluster) -> dict[str, list[int]]:
    names = ("GovernanceActor", "ShipperActor", "ServeController", "ServeReplica", "HAProxyManager", "ProxyActor")
    return {name: sorted(p.pid for p in cluster.processes(f"ray::{name}")) for name in names}


def test_threat_40_strays_are_found_audited_and_killed_and_nobody_else(cluster: RunningCluster, tmp_path: Path) -> None:
    """Named, unnamed, detached, in any namespace and under any name: gone within 5 s, one audit row each.

    A job whose plan has `raw_actors` keeps its actor; agents, also those that start at that moment, and the platform's
    parts are unharmed.
    """
    ray_token = (cluster.settings.secret_dir / "ray-token").read_text().strip()
    dashboard = f"http://{cluster.settings.host}:{cluster.state.ports['dashboard']}"
    with httpx.Client(base_url=dashboard, headers={"authorization": f"Bearer {ray_token}"}, trust_env=False) as client:
        before, earlier = parts(cluster), {r["object_id"] for r in cluster.audit(action="reconciler:actor:kill")}
        (tmp_path / "job.py").write_text(JOB)
        job = submit(cluster, client, "free", tmp_path / "job.py")
        eventually((tmp_path / "pid").exists, within_s=60)
        # A worker stands ready, so that a stray is at work before it is found.
        eventually(lambda: cluster.processes("ray::IDLE"), within_s=60)
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for agent in (f"bystander-{n}" for n in range(4)):
            cluster.register(agent, model="scripted:ok", cpu="10m")
            assert cluster.ask(agent).status_code == 200
        out, err = driver.communicate(timeout=60)
        assert driver.returncode == 0, err
        # Ray says things of its own on a driver's output.
        (said,) = (line for line in out.splitlines() if line.startswith("{"))
        strays: dict[str, Any] = json.loads(said)
        assert strays["took_s"] < 5, strays
        eventually(lambda: not psutil.pid_exists(strays["pid"]))
        rows = eventually(
            lambda: [r for r in cluster.audit(action="reconciler:actor:kill") if r["object_id"] not in earlier],
            lambda found: {r["object_id"] for r in found} >= {*strays["ids"]},
        )
        assert sorted(r["object_id"] for r in rows) == strays["ids"], "each once, and nobody else"
        details = [json.loads(r["detail_json"]) for r in rows]
        assert {(d["class_name"], d["job_id"]) for d in details} == {("Stray", strays["job_id"])}
        assert strays["pid"] in {d["pid"] for d in details}
        assert [cluster.ask(f"bystander-{n}").status_code for n in range(4)] == [200] * 4
        assert {r["writer_epoch"] for n in range(4) for r in cluster.usage(f"bystander-{n}")} == {1}
        assert parts(cluster) == before
        (tmp_path / "end").touch()
        ended = eventually(lambda: client.get(f"/api/jobs/{job}").json(), lambda j: j["status"] not in ("PENDING", "RUNNING"))
        assert ended["status"] == "SUCCEEDED", ended
