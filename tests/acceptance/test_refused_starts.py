"""What ends a start: a lake that overwrites, and a part that other machines could reach. Both leave nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.marked import marked
from actors.run_state import read_state
from actors.topology import stop
from cluster.settings import Settings
from tests.servers.cluster import eventually
from tests.servers.crooked_s3 import CrookedS3, crooked_s3, moto_server
from tests.servers.seaweedfs import s3_credentials

__all__ = ["crooked_s3", "moto_server", "s3_credentials"]

# `up` as far as Ray goes; in the place of the platform's parts, which take most of a start, one that listens openly.
OPEN_START = """
import subprocess, sys
from pathlib import Path
from actors import topology
from actors.supervisor import Supervisor
from cluster.settings import Settings

PART = "import signal, socket; s = socket.create_server(('0.0.0.0', 0)); print(s.getsockname()[1], flush=True); signal.pause()"

def parts(supervisor, verb, timeout_s):
    if verb == "start":
        part = supervisor._spawn([sys.executable, "-c", PART], None, stdout=subprocess.PIPE)
        print("part", part.stdout.readline().decode().strip(), part.pid, flush=True)

Supervisor._bootstrap = parts
topology.run(Settings.load(home=Path(sys.argv[1])), on_progress=print, on_ready=lambda state: sys.exit("ready"))
"""

# `up` with a head that ends as soon as it has listened, whatever the platform's parts would do.
ENDING_HEAD = """
import sys
from pathlib import Path
from actors import supervisor, topology
from cluster.settings import Settings

HEAD = "import socket, sys; socket.create_server((sys.argv[1], int(sys.argv[2]))).accept()"

topology.head_command = lambda settings, ports: [sys.executable, "-c", HEAD, settings.host, str(ports.gcs)]
supervisor.Supervisor._bootstrap = lambda self, verb, timeout_s: None
supervisor.RESTARTS = 3
topology.run(Settings.load(home=Path(sys.argv[1])), on_progress=print, on_ready=lambda state: print("ready"))
"""


@contextlib.contextmanager
def starting(command: list[str], home: Path, **settings: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a cluster under `home`; yields the process and the cluster's id as soon as it has one, and leaves none behind."""
    environment = os.environ | {f"SOVEREIGN_{k.upper()}": str(v) for k, v in settings.items()}
    where = Settings.load(home=home)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            state = eventually(lambda: read_state(where))
            assert state is not None
            yield process, state.cluster_id
        finally:
            stop(where)


def assert_nothing_left(home: Path, cluster_id: str) -> None:
    where = Settings.load(home=home)
    assert [(p.pid, p.cmdline()) for p in marked(cluster_id)] == []
    assert not where.state_path.exists()
    assert not where.run_dir.exists()


@pytest.mark.usefixtures("s3_credentials")
def test_a_lake_that_overwrites_ends_the_start(crooked_s3: CrookedS3, tmp_path: Path) -> None:
    """Threat 66. `sovereign up` fails, names the store and what it ignores, and nothing is left running."""
    crooked_s3.ignore_conditions = True
    home = tmp_path / "home"
    command = [sys.executable, "-P", "-m", "cli.main", "up", "--json", "--http-port", "0", "--home", str(home)]
    lake = {"lake_url": "s3://lake/overwrites", "s3_endpoint": crooked_s3.endpoint}
    with starting(command, home, **lake) as (process, cluster_id):
        output, _ = process.communicate(timeout=120)
        assert process.returncode > 0, output
        detail = json.loads(output.splitlines()[-1])["error"]["detail"]
        assert "s3://lake/overwrites" in detail
        assert "ignores `If-None-Match: *`" in detail
        assert_nothing_left(home, cluster_id)


def test_a_part_that_listens_openly_ends_the_start(tmp_path: Path) -> None:
    """Threat 44. It is found before anyone is told that the cluster is ready, it is named, and it is ended with the rest."""
    home = tmp_path / "home"
    with starting([sys.executable, "-c", OPEN_START, str(home)], home) as (process, cluster_id):
        output, _ = process.communicate(timeout=120)
        assert process.returncode > 0, output
        assert "ready" not in output.splitlines()
        _, port, pid = next(line for line in output.splitlines() if line.startswith("part ")).split()
        assert f"can be reached from other machines: 0.0.0.0:{port} (pid {pid})" in output
        assert_nothing_left(home, cluster_id)


def test_a_head_that_ends_again_and_again_ends_the_cluster(tmp_path: Path) -> None:
    """It is started again a bounded number of times; then the supervisor says why it ends, and leaves nothing running."""
    home = tmp_path / "home"
    with starting([sys.executable, "-c", ENDING_HEAD, str(home)], home) as (process, cluster_id):
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert output.count("starting it again") == 3, output
        assert "after 3 restarts in 10 minutes" in output
        assert "sovereign up" in output
        assert_nothing_left(home, cluster_id)
