"""Gangs and changed agents in a real cluster: one place in Ray for all members, and a new generation for a new spec."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.servers.cluster import RunningCluster, eventually

GROUPS = """
import json
from actors.placement_groups import group_names
from actors.ray_connection import connect_to
from cluster.agents.gang import GROUP_PREFIX
from cluster.settings import Settings
connect_to(Settings.load())
print(json.dumps(sorted(group_names(GROUP_PREFIX))))
"""


def groups(cluster: RunningCluster) -> list[str]:
    """The places of gangs that Ray knows."""
    done = subprocess.run(
        [sys.executable, "-c", GROUPS], env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def live(cluster: RunningCluster) -> dict[str, int]:
    """The generations that are live, by agent."""
    return {x["agent_id"]: x["generation"] for x in cluster.http.get("/api/v1/status").json()["live"]}


def body(agent_id: str, cpu: str = "100m") -> dict[str, Any]:
    return {
        "agent_id": agent_id,
        "capabilities": ["market_analysis"],
        "model": "scripted:ok",
        "security_policy": {"resource_limits": {"cpu": cpu, "memory": "256Mi"}},
    }


def test_a_gang_starts_in_one_place_and_goes_with_it_and_a_changed_agent_starts_anew(cluster: RunningCluster) -> None:
    """One call wakes all members; the removal ends them and gives the place back. A change is a new generation.

    Controls: actors/gangs.py Gangs.start and release, actors/agent_processes.py AgentProcesses.replace.
    """
    gang = {"gang_id": "pair", "agents": [body("pair-a"), body("pair-b")], "strategy": "strict_pack"}
    assert cluster.http.post("/api/v1/gangs", json=gang).status_code == 201
    assert cluster.http.post("/api/v1/gangs", json=gang).status_code == 200
    assert cluster.ask("pair-a").status_code == 200
    eventually(lambda: live(cluster).keys(), lambda found: {"pair-a", "pair-b"} <= found)
    assert len(groups(cluster)) == 1
    assert cluster.http.delete("/api/v1/agents/pair-a").status_code == 409

    assert cluster.http.post("/api/v1/agents", json=body("turns-new")).status_code == 201
    assert cluster.ask("turns-new").status_code == 200
    tag = cluster.http.get("/api/v1/agents/turns-new").headers["etag"]
    changed = cluster.http.put("/api/v1/agents/turns-new", json=body("turns-new", "200m"), headers={"if-match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "changed")
    assert cluster.ask("turns-new").status_code == 200
    assert eventually(lambda: live(cluster).get("turns-new"), lambda found: found == 2)
    late = cluster.http.put("/api/v1/agents/turns-new", json=body("turns-new", "300m"), headers={"if-match": tag})
    assert late.status_code == 412
    assert cluster.http.delete("/api/v1/agents/turns-new").status_code == 200

    assert cluster.http.delete("/api/v1/gangs/pair").status_code == 200
    eventually(lambda: live(cluster).keys(), lambda found: not {"pair-a", "pair-b"} & found)
    assert groups(cluster) == []
    assert cluster.ask("pair-b").status_code == 404
