"""Jobs on a real cluster: by `sovereign job submit` and by Ray's own command, all in flight at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.settings import PROJECT_ROOT
from tests.servers.cluster import RunningCluster, eventually

RESEARCH = PROJECT_ROOT / "examples" / "jobs" / "research.py"
# Fails, and says first which of the cluster's secrets it sees in its environment or in the arguments of what runs it.
FAILING = """
import os, pathlib, psutil
seen = [*os.environ.values()]
for process in [psutil.Process(), *psutil.Process().parents()]:
    seen += process.cmdline()
for path in pathlib.Path(os.environ["SOVEREIGN_HOME"], "secrets").iterdir():
    if any(path.read_text().strip() in text for text in seen):
        print("LEAK", path.name)
raise ValueError("there is no data")
"""


@dataclass(frozen=True)
class Jobs:
    """The three jobs: what their commands answered, and what the job server says of them to whoever has the token."""

    ours: dict[str, Any]
    ray: subprocess.CompletedProcess[str]
    failed: subprocess.CompletedProcess[str]
    listed: list[dict[str, Any]]
    logs: dict[str, str]

    def of(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        [found] = filter(wanted, self.listed)
        return found


def token(cluster: RunningCluster) -> str:
    return (cluster.settings.secret_dir / "ray-token").read_text().strip()


@pytest.fixture(scope="module")
def jobs(cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Run them together: each takes seconds, nearly all of it Ray's own."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "work.py").write_text(RESEARCH.read_text())
    (folder / "failing.py").write_text(FAILING)
    dashboard = f"http://{cluster.settings.host}:{cluster.state.ports['dashboard']}"
    ray_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.settings.secret_dir / "ray-token")}
    # What a shell may have set for another cluster must not lead the token there.
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    sovereign = [sys.executable, "-m", "cli.main", "job", "submit", "--wait"]
    researchers = ["--model", "scripted:echo"]
    labelled = ["--label", "team=research", "--budget-usd", "12.50", "--id", "labelled"]
    commands: list[tuple[list[str], dict[str, str]]] = [
        ([*sovereign, "--json", *labelled, "--working-dir", str(folder), "--", "python", "work.py", *researchers], elsewhere),
        (
            ["ray", "job", "submit", "--address", dashboard, "--", "python", str(RESEARCH), *researchers],
            ray_token | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        ),
        ([*sovereign, "--id", "failing", "--", "python", str(folder / "failing.py")], elsewhere),
    ]
    started = [
        subprocess.Popen(c, env=cluster.environment | e, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c, e in commands
    ]
    ours, ray, failed = [
        subprocess.CompletedProcess(p.args, p.wait(), out, err) for p in started for out, err in [p.communicate(timeout=120)]
    ]
    assert ours.returncode == 0, ours.stdout + ours.stderr
    with httpx.Client(base_url=dashboard, headers={"authorization": f"Bearer {token(cluster)}"}, trust_env=False) as client:
        listed = [j for j in client.get("/api/jobs/").json() if j["type"] == "SUBMISSION"]
        logs = {j["submission_id"]: client.get(f"/api/jobs/{j['submission_id']}/logs").json()["logs"] for j in listed}
    return Jobs(json.loads(ours.stdout), ray, failed, listed, logs)


def usage_of(cluster: RunningCluster, job_id: str) -> dict[str, Any]:
    [row] = eventually(lambda: cluster.usage(f"job:{job_id}"))
    return row


def test_a_job_of_the_command_works_as_its_submitter(cluster: RunningCluster, jobs: Jobs) -> None:
    """From a working_dir: it registers agents, calls them, prints; its metadata says whose it is, taken from the API key."""
    metadata = jobs.of(lambda j: j["submission_id"] == "labelled")["metadata"]
    key_id = cluster.key.split("-")[2]
    assert metadata["sovereign.subject"] == f"key:{key_id}"
    assert (metadata["sovereign.tenant"], metadata["sovereign.project"]) == ("default", "default")
    assert metadata["sovereign.budget_usd"] == "12.50"
    assert metadata["sovereign.label.team"] == "research"
    assert (jobs.ours["status"], jobs.ours["exit_code"], jobs.ours["labels"]) == ("succeeded", 0, {"team": "research"})
    # Ray says things of its own on a driver's output.
    (line,) = (line for line in jobs.logs["labelled"].splitlines() if line.startswith("{"))
    said = json.loads(line)
    assert [f["agent_id"] for f in said["findings"]] == ["researcher-1", "researcher-2"]
    assert all(f["answer"].startswith("echo: ") for f in said["findings"])
    registered = eventually(lambda: cluster.audit(action="admission:agent:decide", object_id="researcher-1"))
    assert {r["actor"] for r in registered} <= {f"key:{key_id}", "operator"}


def test_its_cpu_and_its_calls_are_one_tree(cluster: RunningCluster, jobs: Jobs) -> None:
    """Its row has the driver's CPU, and is the parent of the rows of its calls."""
    row = usage_of(cluster, "labelled")
    assert (row["kind"], row["outcome"], row["tenant_id"]) == ("final", "ok", "default")
    assert 100_000 < row["cpu_us"] < 120_000_000
    assert row["invocation_id"] == jobs.ours["run"]
    calls = eventually(lambda: [r for r in cluster.usage("researcher-1") if r["parent_invocation_id"] == jobs.ours["run"]])
    assert len(calls) == 1
    assert len(cluster.audit(action="job:run:end", object_id="labelled")) == 1


def test_a_job_of_rays_own_command_works_and_is_measured(cluster: RunningCluster, jobs: Jobs) -> None:
    """`ray job submit` without metadata is the operator's; the Python client measures the process that connects."""
    assert jobs.ray.returncode == 0, jobs.ray.stdout + jobs.ray.stderr
    assert '"status": "done"' in jobs.ray.stdout
    job = jobs.of(lambda j: "research.py" in j["entrypoint"])
    row = usage_of(cluster, job["submission_id"])
    assert (row["kind"], row["outcome"], row["tenant_id"]) == ("final", "ok", "default")
    assert row["cpu_us"] > 100_000
    [began] = cluster.audit(action="job:run:start", object_id=job["submission_id"])
    assert began["actor"] == "operator"
    assert eventually(lambda: [r for r in cluster.usage("researcher-2") if r["parent_invocation_id"] == row["invocation_id"]])


def test_a_job_that_raises_fails_the_command_and_says_why(cluster: RunningCluster, jobs: Jobs) -> None:
    """Exit code 1, its output as it came, and one sentence with the exception; what it used is recorded all the same."""
    assert jobs.failed.returncode == 1
    assert "Traceback" in jobs.failed.stdout  # the job's own output
    assert "Traceback" not in jobs.failed.stderr
    assert "Job failing ended with exit code 1" in jobs.failed.stderr
    assert "ValueError: there is no data" in jobs.failed.stderr
    assert usage_of(cluster, "failing")["outcome"] == "failed"


def test_no_secret_travels_with_a_job(cluster: RunningCluster, jobs: Jobs) -> None:
    """Not in metadata, entrypoint, runtime_env or log, not in its environment or arguments, not in the platform's logs."""
    assert "LEAK" not in jobs.failed.stdout
    secrets = [path.read_text().strip() for path in cluster.settings.secret_dir.iterdir()]
    assert len(secrets) >= 3
    logs = [p for p in (cluster.settings.run_dir / "ray" / "session_latest" / "logs").rglob("*") if p.is_file()]
    texts = [p.read_text(errors="replace") for p in [*logs, *cluster.settings.log_dir.iterdir()] if p.is_file()]
    texts += [json.dumps(jobs.listed), *jobs.logs.values(), jobs.failed.stderr, jobs.ray.stderr, json.dumps(jobs.ours)]
    assert len(texts) > 10
    assert not [s[:4] for s in secrets for text in texts if s in text]


def test_a_key_that_does_not_hold_submits_nothing(cluster: RunningCluster, tmp_path: Path) -> None:
    """Exit code 6, the file is named, what is in it is not said."""
    key = "sk-sov-" + cluster.key.split("-")[2] + "-" + "0" * 64
    (tmp_path / "key").write_text(key)
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "job",
        "submit",
        "--key-file",
        str(tmp_path / "key"),
        "--id",
        "unowned",
        "--",
        "true",
    ]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert str(tmp_path / "key") in done.stderr
    assert key not in done.stderr
    shown = subprocess.run([*command[:4], "show", "unowned"], env=cluster.environment, capture_output=True, check=False)
    assert shown.returncode == 4


def test_a_job_that_is_not_there_is_not_found(cluster: RunningCluster, jobs: Jobs) -> None:
    """Exit code 4; and a second job of an id is refused before it is sent."""
    command = [sys.executable, "-m", "cli.main", "job"]
    shown = subprocess.run([*command, "show", "no-such"], env=cluster.environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr.splitlines()[0]) == (4, "Not found: There is no job 'no-such'.")
    again = [*command, "submit", "--id", "failing", "--", "true"]
    refused = subprocess.run(again, env=cluster.environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 7
