"""The ports that a node listens on are chosen before anything starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from actors.ray_environment import Ports
from cluster.errors import ConfigurationError
from cluster.settings import Settings


def test_a_port_that_is_asked_for_is_taken_or_the_start_is_refused(tmp_path: Path) -> None:
    """Nodes are told this port beforehand, so the next free one would not do."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            Ports.choose(Settings.load(home=tmp_path, ray_port=port, http_port=0))
    assert Ports.choose(Settings.load(home=tmp_path, ray_port=port, http_port=0)).gcs == port
