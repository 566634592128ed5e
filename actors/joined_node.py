"""A node that joins a running cluster, with the cluster's marker and its own name on all that it starts.

So the cluster's end takes it along, and the node's end takes nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import psutil

from actors import supervisor
from actors.marked import end_marked
from actors.ray_environment import Ports, ray_environment, worker_command
from actors.run_state import ClusterState, NodeState, read_node_state, read_state
from actors.supervisor import START_TIMEOUT_S, Progress, StoppedError, Supervisor, own_folders, refuse_exposure
from cluster.agents.placement import parse_node_labels
from cluster.errors import ConfigurationError, ConflictError, UnavailableError
from cluster.settings import Settings


def cluster_to_join(settings: Settings, address: str) -> ClusterState:
    """Return the cluster of this home; raises UnavailableError when none runs, ConfigurationError when it is not at `address`."""
    cluster = read_state(settings)
    if cluster is None or not cluster.alive or cluster.status != "ready":
        raise UnavailableError(f"No cluster runs under {settings.home}.", hint="Start one with `sovereign up`, then join it.")
    if address not in ("", cluster.ray_address):
        raise ConfigurationError(
            f"The cluster under {settings.home} answers nodes at {cluster.ray_address}, not at {address}.",
            hint="Name that address or none; the nodes of a cluster share its home.",
        )
    return cluster


def run(
    settings: Settings, names: Iterable[str], address: str, *, on_progress: Progress, on_ready: Callable[[NodeState], None]
) -> int:
    """Join under the first of `names` that runs nowhere yet, stay until SIGTERM or SIGINT, end everything; return the exit code.

    Raises ConfigurationError when the settings do not allow it, ConflictError when nodes of all these names run already,
    UnavailableError when there is no cluster or a part did not come up. After a raise nothing is left running.
    """
    refuse_exposure(settings)
    parse_node_labels(settings.node_labels)
    cluster = cluster_to_join(settings, address)
    taken: list[str] = []
    for name in names:
        mine = settings.of_node(name)
        with _only_one(mine) as owned:
            if owned:
                return _JoinedNode.of(mine, cluster, on_progress).run(on_ready)
        taken.append(name)
    raise ConflictError(
        f"Nodes of these names run already under {settings.home}: {', '.join(taken)}.",
        hint="Give this one another name with --name, or end one with `sovereign leave`.",
    )


def leave(settings: Settings, *, timeout_s: float = 90.0, on_progress: Progress = lambda _: None) -> bool:
    """End the node whose settings these are, and nothing else; return whether anything of it was running."""
    forget = partial(_forget, settings)
    return supervisor.stop(read_node_state(settings), settings.node, forget, timeout_s=timeout_s, on_progress=on_progress)


class _JoinedNode(Supervisor[NodeState]):
    """One life of a node that joined."""

    command = "sovereign join"
    begin, finish, finish_timeout_s = "join", "leave", 40.0

    @classmethod
    def of(cls, settings: Settings, cluster: ClusterState, progress: Progress) -> _JoinedNode:
        _make_folders(settings)
        ports = Ports.choose(settings.model_copy(update={"http_port": 0}))
        state = NodeState(
            name=settings.node,
            cluster_id=cluster.cluster_id,
            status="starting",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            ray_address=cluster.ray_address,
            metrics_url=f"http://{settings.host}:{ports.node_metrics}/metrics",
            started_at=time.time(),
        )
        return cls(settings, ports, ray_environment(settings, ports, cluster.cluster_id, os.environ), state, progress)

    @property
    def state_path(self) -> Path:
        return self._settings.node_state_path

    def ray_command(self) -> list[str]:
        return worker_command(self._settings, self._ports, self._state.ray_address, self.start_id)

    def clear(self) -> None:
        shutil.rmtree(self._settings.run_dir, ignore_errors=True)
        _make_folders(self._settings)

    def may_start_again(self) -> bool:
        """Wait until the cluster that we joined is ready, because its head may be starting again; False when it has ended."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._stop:
                raise StoppedError
            cluster = read_state(self._settings)
            if cluster is None or not cluster.alive or cluster.cluster_id != self._state.cluster_id:
                return False
            if cluster.status == "ready":
                return True
            time.sleep(0.2)
        return False

    def forget(self) -> None:
        _forget(self._settings)


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[bool]:
    """Hold this node's lock; yields False when another holds it."""
    settings.node_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.node_dir / "join.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        if (earlier := read_node_state(settings)) is not None:
            end_marked(earlier.cluster_id, settings.node)  # a supervisor that was killed could not clean up
            _forget(settings)
        yield True


def _make_folders(settings: Settings) -> None:
    own_folders((settings.node_dir, settings.run_dir, settings.run_dir / "t"), "Remove it or choose another --name.")
    settings.journal_dir.mkdir(exist_ok=True)
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir()


def _forget(settings: Settings) -> None:
    """Remove what describes a running node; what it recorded stays."""
    settings.node_state_path.unlink(missing_ok=True)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
