"""The command as a process: how fast it starts, and what it says when there is no cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("ray", "langchain", "langgraph", "pyarrow", "duckdb", "httpx", "pydantic", "boto3", "rich.table")


def sovereign(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)  # type: ignore[call-overload]  # options of run


def test_help_imports_nothing_heavy() -> None:
    """`sovereign --help` answers at once: what a command needs is imported when it runs."""
    program = f"import sys, cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert "agents" in sovereign("--help").stdout


@pytest.mark.parametrize(
    "command", [["agents", "list"], ["agents", "show", "a"], ["agents", "remove", "a"], ["invoke", "a", "hi"]], ids=" ".join
)
def test_without_a_cluster_a_command_says_how_to_start_one(command: list[str], tmp_path: Path) -> None:
    """Exit code 5, one sentence, one hint, no traceback."""
    done = sovereign(*command, "--home", str(tmp_path))
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"Unavailable: No cluster runs under {tmp_path}.",
        "Start one with `sovereign up`.",
    ]


def test_with_json_the_same_is_a_document(tmp_path: Path) -> None:
    """A script gets the problem, and status says running: false."""
    done = sovereign("agents", "list", "--json", "--home", str(tmp_path))
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "unavailable"
    done = sovereign("status", "--json", "--home", str(tmp_path))
    assert done.returncode == 5
    assert json.loads(done.stdout) == {"running": False, "home": str(tmp_path)}


def test_down_without_a_cluster_is_no_failure(tmp_path: Path) -> None:
    """Scripts may call it twice."""
    done = sovereign("down", "--json", "--home", str(tmp_path))
    assert (done.returncode, json.loads(done.stdout)["stopped"]) == (0, False)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    """Nothing is started on a setting that can't be read."""
    environment = {"SOVEREIGN_QUEUE_LIMIT": "many", "PATH": "/usr/bin:/bin"}
    done = sovereign("up", "--home", str(tmp_path / "new"), env=environment)
    assert done.returncode == 2
    assert "SOVEREIGN_QUEUE_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_traceback_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    """SOVEREIGN_LOG_LEVEL=DEBUG is how to see where a fault came from."""
    (tmp_path / "cluster.json").write_text("{")
    environment = {"PATH": "/usr/bin:/bin"}
    quiet = sovereign("status", "--home", str(tmp_path), env=environment)
    loud = sovereign("status", "--home", str(tmp_path), env=environment | {"SOVEREIGN_LOG_LEVEL": "DEBUG"})
    assert quiet.returncode == loud.returncode == 2
    assert "cluster.json" in quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
