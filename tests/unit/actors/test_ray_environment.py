"""What Ray is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.ray_environment import Ports, head_command, ray_environment, worker_command
from cluster.settings import Settings

PORTS = Ports(*range(1, len(Ports.__dataclass_fields__) + 1))


def environment(tmp_path: Path, base: dict[str, str] | None = None, **settings: object) -> dict[str, str]:
    return ray_environment(Settings.load(home=tmp_path, **settings), PORTS, "c0ffee", base or {})


def test_the_starters_own_ray_and_platform_variables_do_not_leak_in(tmp_path: Path) -> None:
    """A variable left over from another cluster must not steer this one."""
    env = environment(
        tmp_path, {"RAY_ADDRESS": "10.0.0.1:1", "SOVEREIGN_HOME": "/elsewhere", "SOVEREIGN_EXPOSE": "true", "LANG": "C"}
    )
    assert "RAY_ADDRESS" not in env
    assert "SOVEREIGN_EXPOSE" not in env
    assert env["SOVEREIGN_HOME"] == str(tmp_path)  # this cluster's own, for its jobs
    assert env["LANG"] == "C"


def test_authentication_is_asked_for_by_name(tmp_path: Path) -> None:
    """Token authentication never rests on Ray's own guess, and the token itself is in no environment."""
    env = environment(tmp_path)
    assert env["RAY_AUTH_MODE"] == "token"
    assert Path(env["RAY_AUTH_TOKEN_PATH"]).parent.name == "secrets"
    assert "RAY_AUTH_TOKEN" not in env


def test_every_listener_of_the_head_has_a_port_of_ours(tmp_path: Path) -> None:
    """No port is left to Ray's defaults, so that two clusters never meet."""
    command = " ".join(head_command(Settings.load(home=tmp_path), PORTS))
    environment_text = " ".join(environment(tmp_path).values())
    for name, port in PORTS.to_dict().items():
        if name in ("http", "local_model", "node_metrics"):
            continue  # given to Serve, the model and the shipper by the bootstrap
        assert f"={port}" in command or str(port) in environment_text.split(), name


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_loopback_host_stays_loopback(tmp_path: Path, host: str) -> None:
    """Ray replaces 127.0.0.1 by the machine's address unless it is told not to."""
    assert environment(tmp_path, host=host).get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0"


def test_a_node_that_joins_names_itself_and_its_labels(tmp_path: Path) -> None:
    """Ray knows it by a label, its processes by their environment; its ports are its own, and it opens no way in."""
    settings = Settings.load(home=tmp_path, node="w1", node_labels="zone=a")
    command = worker_command(settings, PORTS, "127.0.0.1:6379", "s1")
    assert {"--address=127.0.0.1:6379", "--labels=sovereign-node=w1,sovereign-start=s1,zone=a"} <= set(command)
    assert not any(option.startswith(("--head", "--port=", "--dashboard-port")) for option in command)
    assert environment(tmp_path, node="w1")["SOVEREIGN_NODE"] == "w1"
