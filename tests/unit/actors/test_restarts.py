"""What is started again when it ends by itself, and when that has an end."""

from __future__ import annotations

from typing import Any

import pytest

from actors.restart_bound import RestartBound


def test_a_bound_allows_so_many_within_its_time_and_forgets_older_ones() -> None:
    """Two within ten seconds are allowed, the third is not; refused ones do not count."""
    bound = RestartBound(2, 10.0)
    assert [bound.allows(t) for t in (0.0, 1.0, 2.0, 9.9, 10.0, 10.5, 11.0)] == [True, True, False, False, True, False, True]


class Ended:
    """A process that has ended."""

    returncode = -9

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def node() -> Any:
    """A node of which nothing runs: Ray's own methods that start its processes note themselves."""
    from actors.ray_head import LastingNode

    made: Any = LastingNode.__new__(LastingNode)
    made._bound = RestartBound(3, 600.0)
    made.started = []
    made.all_processes = {}
    made._gcs_address = made._gcs_client = "of the one that ended"
    made._ray_params = type("Parameters", (), {"include_dashboard": None})()

    def starting(name: str) -> Any:
        return lambda **_: made.started.append((name, made._gcs_address))

    for name in ("gcs_server", "api_server", "log_monitor", "monitor", "ray_client_server"):
        assert callable(getattr(LastingNode, f"start_{name}")), "Ray starts it by another name"
        setattr(made, f"start_{name}", starting(name))
    return made


def ended(*kinds: str) -> dict[str, list[Any]]:
    return {kind: [type("Info", (), {"process": Ended()})()] for kind in kinds}


def test_the_control_store_and_its_company_are_started_again_in_order(node: Any) -> None:
    """The control store first and without memory of the one that ended; Ray's loop hears of no death."""
    node.all_processes = ended("dashboard", "gcs_server", "log_monitor")
    assert node.dead_processes() == []
    assert node.started == [("gcs_server", None), ("api_server", None), ("log_monitor", None)]


def test_the_raylets_end_is_the_heads(node: Any) -> None:
    """Every actor's process ends with it, so nothing else is started beside."""
    node.all_processes = ended("gcs_server", "raylet")
    assert [kind for kind, _ in node.dead_processes()] == ["gcs_server", "raylet"]
    assert node.started == []


def test_a_process_that_ends_again_and_again_ends_the_head(node: Any) -> None:
    """Three restarts are allowed here; the fourth end is reported."""
    for _ in range(3):
        node.all_processes = ended("monitor")
        assert node.dead_processes() == []
    node.all_processes = ended("monitor")
    assert [kind for kind, _ in node.dead_processes()] == ["monitor"]
    assert len(node.started) == 3
