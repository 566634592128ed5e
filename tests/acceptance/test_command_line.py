"""The command from `up` to `down`, as a person or a script uses it, on a cluster that it starts itself."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.settings import PROJECT_ROOT, Settings
from tests.servers.cluster import RunningCluster

EXAMPLE_PATH = PROJECT_ROOT / "examples" / "strategic_planner.json"
EXAMPLE_1: dict[str, Any] = json.loads(EXAMPLE_PATH.read_text())


class Command:
    """`sovereign … --json` under one home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli.main", *arguments, "--home", str(self.home)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, input=given)

    def json(self, *arguments: str, code: int = 0, given: str | None = None) -> Any:
        done = self.run(*arguments, "--json", given=given)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def command(cluster: RunningCluster) -> Command:
    return Command(cluster.settings.home)


def carries(process: psutil.Process, cluster_id: str) -> bool:
    try:
        return process.environ().get("SOVEREIGN_CLUSTER_ID") == cluster_id
    except psutil.Error:
        return False


def test_up_says_how_to_call_and_survives_its_terminal(command: Command) -> None:
    """The supervisor leads a session of its own, and a second `up` finds it instead of starting another."""
    again = command.json("up")
    assert httpx.get(f"{again['http_url']}/health/ready", trust_env=False).status_code == 200
    assert os.getsid(again["pid"]) == again["pid"] != os.getsid(0)
    words = command.run("up").stdout
    assert again["http_url"] in words
    assert again["api_key_file"] in words


def test_status_says_what_confines_tools_and_where_the_metrics_are(command: Command) -> None:
    """A weak sandbox is told each time, not only once at start; the address of /metrics is the one that answers."""
    status = command.json("status")
    sandbox = status["cluster"]["sandbox"]
    assert sandbox["strength"] in {"strong", "weak"}
    words = command.run("status").stdout
    assert sandbox["system_calls"] in words
    assert ("The sandbox is weak" in words) == (sandbox["strength"] == "weak")
    assert status["metrics_url"] in words
    assert status["metrics_url"] in command.run("up").stdout
    assert "# TYPE" in httpx.get(status["metrics_url"], trust_env=False).text


def test_secrets_are_readable_by_their_owner_alone(command: Command) -> None:
    """Nobody else on the machine learns a key, and none is printed."""
    folder = command.home / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}
    assert stat.S_IMODE((command.home / "cluster.json").stat().st_mode) == 0o600
    key = (folder / "api-key").read_text().strip()
    assert key not in command.run("up").stdout + command.run("status").stdout


def test_the_example_registers_from_a_file_from_stdin_and_from_options(command: Command) -> None:
    """The same registration by any road is the same registration."""
    wanted = {"status": "registered", "agent_id": "strategic-planner-001", "security_clearance": "validated"}
    assert command.json("agents", "register", "--file", str(EXAMPLE_PATH)) == wanted
    assert command.json("agents", "register", "-f", "-", given=json.dumps(EXAMPLE_1)) == wanted
    options = ["--type", "planner", "--cpu", "1000m", "--memory", "2Gi", "--network", "external_apis"]
    options += ["--data-access", "strategic_read_only", "--compliance", "SOC2", "--compliance", "GDPR"]
    options += [x for tool in EXAMPLE_1["security_policy"]["allowed_tools"] for x in ("--tool", tool)]
    options += [x for capability in EXAMPLE_1["capabilities"] for x in ("-c", capability)]
    assert command.json("agents", "register", "strategic-planner-001", *options) == wanted
    assert "strategic-planner-001" in [a["agent_id"] for a in command.json("agents", "list", "--limit", "1000")["agents"]]
    page = command.json("agents", "list", "--after", "strategic-planner-000", "--limit", "1")
    assert [a["agent_id"] for a in page["agents"]] == ["strategic-planner-001"]
    assert command.json("agents", "show", "strategic-planner-001")["agent_id"] == "strategic-planner-001"


def test_a_refusal_names_every_failed_check(command: Command) -> None:
    """Exit code 3, the checks by name for a person, and the problem for a script."""
    arguments = ["agents", "register", "greedy", "-c", "payment_execution", "--cpu", "64"]
    problem = command.json(*arguments, code=3)["error"]
    assert problem["code"] == "admission_denied"
    assert len(problem["errors"]) >= 2
    done = command.run(*arguments)
    assert done.returncode == 3
    assert all(error["field"] in done.stderr for error in problem["errors"])
    assert "Traceback" not in done.stderr
    assert "payment_execution" in done.stderr


def test_a_wrong_field_and_a_missing_agent_have_their_codes(command: Command) -> None:
    """2 for what is not of the form, 4 for what is not there."""
    wrong = command.json("agents", "register", "a", "-c", "conversation", "--memory", "512m", code=2)["error"]
    assert [error["field"] for error in wrong["errors"]] == ["security_policy.resource_limits.memory"]
    assert command.json("agents", "show", "nobody", code=4)["error"]["code"] == "not_found"
    assert command.json("agents", "remove", "nobody", code=4)["error"]["code"] == "not_found"
    assert command.json("invoke", "nobody", "hi", code=4)["error"]["code"] == "not_found"


def test_an_agent_is_asked_metered_and_removed(command: Command) -> None:
    """The answer is printed, its usage is in the lake, and after removal it is gone."""
    command.json("agents", "register", "echo-1", "-c", "conversation", "--model", "scripted:echo")
    assert command.run("invoke", "echo-1", "good morning").stdout.strip().endswith("good morning")
    assert command.run("invoke", "echo-1", "good evening", "--stream").stdout.strip().endswith("good evening")
    answer = command.json("invoke", "echo-1", "-", given="by pipe")
    assert answer["usage"]["completion_tokens"] > 0
    rows: list[dict[str, Any]] = []
    for _ in range(60):  # the lake is written every second
        if len(rows) == 3:
            break
        rows = command.json("usage", "--agent", "echo-1")["usage"]
    assert len(rows) == 3
    assert {row["kind"] for row in rows} == {"final"}
    assert answer["id"].removeprefix("chatcmpl-") in {row["invocation_id"] for row in rows}
    assert len(command.json("usage", "--agent", "echo-1", "--limit", "2")["usage"]) == 2
    assert command.json("usage", "--agent", "nobody")["usage"] == []
    assert "echo-1" in command.run("usage").stdout
    command.json("agents", "remove", "echo-1")
    decided = command.json("audit", "--action", "admission:agent:decide")["audit"]
    assert {"echo-1"} == {row["object_id"] for row in decided if row["object_id"] == "echo-1" and row["outcome"] == "allowed"}
    assert "echo-1" in command.run("audit").stdout
    assert command.json("invoke", "echo-1", "hi", code=4)["error"]["code"] == "not_found"


def test_a_conversation_goes_on(command: Command) -> None:
    """With the same conversation id the agent has what was said before."""
    command.json("agents", "register", "memory-1", "-c", "conversation", "--model", "scripted:echo")
    first = command.json("invoke", "memory-1", "one", "--conversation", "c1")["usage"]["prompt_tokens"]
    second = command.json("invoke", "memory-1", "two", "--conversation", "c1")["usage"]["prompt_tokens"]
    other = command.json("invoke", "memory-1", "two", "--conversation", "c2")["usage"]["prompt_tokens"]
    assert second > other
    assert first == other


def test_logs_show_each_part_by_name(command: Command) -> None:
    """Every line is a document with its component under --json."""
    lines = [
        json.loads(x) for x in command.run("logs", "--component", "governance", "--lines", "5", "--json").stdout.splitlines()
    ]
    assert lines
    assert {line["component"] for line in lines} == {"governance"}
    assert command.run("logs", "--component", "bogus").returncode == 4


def test_two_clusters_run_side_by_side_and_down_ends_only_its_own(command: Command, tmp_path: Path) -> None:
    """They share no port, no file and no process; after `down` nothing of the one is left, and the other answers on."""
    mine, other = command.json("status"), Command(tmp_path / "other")
    theirs = other.json("up", "--http-port", str(httpx.URL(mine["http_url"]).port))
    cluster_id = other.json("status")["cluster_id"]
    assert theirs["http_url"] != mine["http_url"]
    assert any(carries(p, cluster_id) for p in psutil.process_iter())
    assert other.json("agents", "list")["agents"] == []
    assert other.json("down")["stopped"] is True
    assert not [p for p in psutil.process_iter() if carries(p, cluster_id)]
    assert not Settings.load(home=other.home).run_dir.exists()
    assert other.json("status", code=5)["running"] is False
    assert command.json("status")["cluster_id"] == mine["cluster_id"]
    assert httpx.get(f"{mine['http_url']}/health/ready", trust_env=False).status_code == 200
