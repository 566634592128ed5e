"""A policy bundle put in force in a running cluster by the command, and refused by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.cluster import RunningCluster


def policy(cluster: RunningCluster, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "cli.main", "policy", *words, "--json"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_a_bundle_comes_into_force_while_the_cluster_runs(cluster: RunningCluster, tmp_path: Path) -> None:
    """Built, signed, pushed and in force; unsigned or a second time it is refused; a rollback is a new number of old content.

    The content is what the cluster began with, so that other tests see no other policy.
    """
    begun = cluster.http.get("/api/v1/status").json()["policy"]
    out = tmp_path / "policy.tar"
    code, built = policy(cluster, "build", "--policies", str(cluster.settings.policy_dir), "--out", str(out))
    assert (code, built["number"]) == (0, begun["number"] + 1)
    code, problem = policy(cluster, "push", str(out))
    assert (code, problem["error"]["code"]) == (3, "policy_bundle_refused")
    assert policy(cluster, "sign", str(out))[0] == 0
    assert policy(cluster, "push", str(out))[0] == 0
    assert cluster.http.get("/api/v1/status").json()["policy"] == begun | {"number": built["number"]}
    code, problem = policy(cluster, "push", str(out))
    assert (code, "not greater" in problem["error"]["detail"]) == (3, True)
    assert [b["number"] for b in policy(cluster, "list")[1]["bundles"]][:2] == [built["number"], begun["number"]]
    code, back = policy(cluster, "rollback", str(begun["number"]))
    assert code == 0, str(back)
    assert (back["number"], back["digest"]) == (built["number"] + 1, begun["digest"])
    assert policy(cluster, "list")[1]["in_force"] == back["number"]
