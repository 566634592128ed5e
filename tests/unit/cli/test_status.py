"""What `sovereign status` draws of what the cluster says."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from actors.run_state import ClusterState
from cli.status import _live_row, _render
from cluster.agents.bubblewrap_sandbox import BubblewrapSandbox
from cluster.agents.process_sandbox import ProcessSandbox

STATE = ClusterState(
    cluster_id="c",
    status="ready",
    pid=1,
    pid_started=0.0,
    http_url="http://127.0.0.1:8080",
    ray_address="127.0.0.1:6379",
    ports={"node_metrics": 9100},
    started_at=0.0,
)


def drawn(capsys: pytest.CaptureFixture[str], cluster: dict[str, Any]) -> str:
    data = dict.fromkeys(("status", "http_url", "home", "cluster_id", "pid"), "")
    _render(Console(width=200), data | {"metrics_url": STATE.metrics_url, "cluster": cluster})
    return capsys.readouterr().out


def test_an_agent_that_has_just_woken_is_drawn_too() -> None:
    """What is enforced on it is known a moment after its first answer; until then that is what is said."""
    woken = {"agent_id": "a", "generation": 1, "enforcement": None}
    assert _live_row(woken) == ["a", 1, "not known yet", "not known yet"]


def test_a_live_agent_says_what_is_enforced_and_what_is_only_advisory() -> None:
    """By what, or why not."""
    held = {"cpu": {"status": "advisory", "by": [], "why": ["no cgroup"]}, "memory": {"status": "enforced", "by": ["rlimit"]}}
    live = {"agent_id": "a", "generation": 2, "enforcement": held}
    assert _live_row(live) == ["a", 2, "advisory: no cgroup", "enforced: rlimit"]


def test_the_sandbox_and_its_weakness_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """An operator whose tools can read this user's files sees it each time, and not only once at start."""
    weak = drawn(capsys, {"live": [], "sandbox": ProcessSandbox().describe()})
    assert "this user's" in weak
    assert "The sandbox is weak" in weak
    strong = drawn(capsys, {"live": [], "sandbox": BubblewrapSandbox().describe()})
    assert "bubblewrap" in strong
    assert "The sandbox is weak" not in strong


def test_the_metrics_have_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever sets up a scraper reads it there."""
    assert "http://127.0.0.1:9100/metrics" in drawn(capsys, {})
