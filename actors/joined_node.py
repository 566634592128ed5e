"""The supervisor of a node that joins a running cluster: starts Ray there, again when it ended, and ends what it started.

Like the supervisor of the first node (`actors.topology`) it holds no Ray connection. What it starts carries the cluster's
marker and the node's name, so that the cluster's end takes it along, and the node's end takes nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import IO, Any

import psutil

from actors.listeners import assert_private, is_loopback
from actors.ray_environment import Ports, ray_environment, worker_command
from actors.restart_bound import RestartBound
from actors.topology import PR_SET_CHILD_SUBREAPER, ClusterState, Progress, end_marked, marked, read_state, reap_orphans
from cluster.agents.cgroup import remove_cgroups
from cluster.agents.placement import parse_node_labels
from cluster.errors import ConfigurationError, ConflictError, SovereignError, UnavailableError
from cluster.settings import PROJECT_ROOT, Settings

JOIN_TIMEOUT_S = 120.0
LEAVE_TIMEOUT_S = 40.0
# A node whose Ray ends oftener than so will not be mended by one more start.
RESTARTS, RESTARTS_WITHIN_S = 5, 600.0


@dataclass(frozen=True, slots=True)
class NodeState:
    """What runs of one node that joined; `status` is starting, ready or stopping."""

    name: str
    cluster_id: str
    status: str
    pid: int
    pid_started: float
    ray_address: str
    metrics_url: str
    started_at: float
    version: int = 1

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this is still the process of that id."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.pid_started) < 1.0
        except psutil.Error:
            return False


def read_node_state(settings: Settings) -> NodeState | None:
    """Return what was last written of the node whose settings these are, or None; ask `alive` whether it still holds."""
    try:
        return NodeState(**json.loads(settings.node_state_path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as e:
        raise ConfigurationError(
            f"{settings.node_state_path} cannot be read: {e}", hint="If no node of that name runs here, delete the file."
        ) from None


def node_states(settings: Settings) -> list[NodeState]:
    """Return what was last written of each node that joined under this home, in order of their names."""
    names = sorted(path.parent.name for path in settings.nodes_dir.glob("*/node.json"))
    return [state for name in names if (state := read_node_state(settings.of_node(name))) is not None]


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
    if not is_loopback(settings.host) and not settings.expose:
        raise ConfigurationError(
            f"SOVEREIGN_HOST is {settings.host}, which other machines can reach.",
            hint="Set SOVEREIGN_EXPOSE=true if that is meant; TLS and a firewall are then yours to provide.",
        )
    parse_node_labels(settings.node_labels)
    cluster = cluster_to_join(settings, address)
    taken: list[str] = []
    for name in names:
        mine = settings.of_node(name)
        with _only_one(mine) as owned:
            if owned:
                return _Supervisor(mine, cluster, on_progress).run(on_ready)
        taken.append(name)
    raise ConflictError(
        f"Nodes of these names run already under {settings.home}: {', '.join(taken)}.",
        hint="Give this one another name with --name, or end one with `sovereign leave`.",
    )


def leave(settings: Settings, *, timeout_s: float = 90.0, on_progress: Progress = lambda _: None) -> bool:
    """End the node whose settings these are, and nothing else; return whether anything of it was running."""
    state = read_node_state(settings)
    if state is None:
        return False
    was_alive = state.alive
    if was_alive:
        on_progress(f"asking the node's supervisor (pid {state.pid}) to stop")
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            supervisor.wait(timeout_s)
    left = end_marked(state.cluster_id, settings.node)
    _forget(settings)
    return was_alive or left > 0


class _Supervisor:
    """One life of a node, from its folder to its last process."""

    def __init__(self, settings: Settings, cluster: ClusterState, progress: Progress) -> None:
        self._progress = progress
        self._settings = settings
        self._cluster = cluster
        self._stop = False
        self._ray: subprocess.Popen[bytes] | None = None
        _make_folders(settings)
        self._ports = Ports.choose(settings.model_copy(update={"http_port": 0}))
        self._env = ray_environment(settings, self._ports, cluster.cluster_id, os.environ)
        self._state = NodeState(
            name=settings.node,
            cluster_id=cluster.cluster_id,
            status="starting",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            ray_address=cluster.ray_address,
            metrics_url=f"http://{settings.host}:{self._ports.node_metrics}/metrics",
            started_at=time.time(),
        )

    def run(self, on_ready: Callable[[NodeState], None]) -> int:
        # Orphans of the node come to us, so that none outlives us unseen.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            self._start()
            on_ready(self._state)
            return self._watch()
        except _StoppedError:
            return 0
        finally:
            self._tear_down()

    def _start(self) -> None:
        self._write("starting")
        self._progress("starting Ray")
        with self._log("ray") as log:
            self._ray = self._spawn(worker_command(self._settings, self._ports, self._cluster.ray_address), log)
        self._bootstrap("join", JOIN_TIMEOUT_S)
        assert_private(self._settings, (p.pid for p in marked(self._state.cluster_id, self._settings.node)))
        self._write("ready")

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _watch(self) -> int:
        bound = RestartBound(RESTARTS, RESTARTS_WITHIN_S)
        while not self._stop:
            if self._ray is not None and self._ray.poll() is None:
                reap_orphans(self._ray.pid)
                time.sleep(0.2)
            elif not self._start_again(bound):
                self._progress("the cluster has ended, and this node with it")
                return 1
        return 0

    def _start_again(self, bound: RestartBound) -> bool:
        """Join again after Ray ended here, by itself or with the head; False when the cluster has ended.

        Raises UnavailableError when it ends too often.
        """
        code = self._ray.returncode if self._ray is not None else None
        if not bound.allows(time.monotonic()):
            raise UnavailableError(
                f"Ray ended on this node with code {code}, after {bound.limit} restarts in {bound.within_s / 60:.0f} minutes.",
                hint=f"Look into {self._settings.log_dir} for the reason, then join again.",
            )
        self._progress(f"Ray ended with code {code}; joining again")
        self._write("starting")
        end_marked(self._state.cluster_id, self._settings.node, gently=False)
        shutil.rmtree(self._settings.run_dir, ignore_errors=True)
        _make_folders(self._settings)
        if not self._await_cluster():
            return False
        try:
            self._start()
        except UnavailableError as e:
            # It ended again while it started, perhaps with a head that does: that counts as one more end.
            self._progress(str(e))
            if self._ray is not None:
                self._ray.kill()
                self._ray.wait()
        return True

    def _await_cluster(self) -> bool:
        """Wait until the cluster that we joined is ready, because its head may be starting again; False when it has ended."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._stop:
                raise _StoppedError
            cluster = read_state(self._settings)
            if cluster is None or not cluster.alive or cluster.cluster_id != self._state.cluster_id:
                return False
            if cluster.status == "ready":
                return True
            time.sleep(0.2)
        return False

    def _tear_down(self) -> None:
        ray, ready = self._ray, self._state.status == "ready"
        self._write("stopping")
        if ready and ray is not None and ray.poll() is None:
            self._progress("draining agents and shipping what is left")
            self._stop = False
            with contextlib.suppress(SovereignError, _StoppedError):
                self._bootstrap("leave", LEAVE_TIMEOUT_S)
        if ray is not None and ray.poll() is None:
            ray.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ray.wait(10)
        self._progress("ending processes")
        end_marked(self._state.cluster_id, self._settings.node)
        remove_cgroups(self._settings.run_dir.name)
        if ray is not None:
            ray.wait()
        _forget(self._settings)

    def _spawn(self, command: list[str], log: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in our terminal reaches us alone, and we end the rest in order.
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | more
        return subprocess.Popen(command, env=self._env, cwd=PROJECT_ROOT, start_new_session=True, text=False, **streams)

    def _bootstrap(self, verb: str, timeout_s: float) -> None:
        command = [sys.executable, "-m", "serve_apps.bootstrap", verb, self._cluster.ray_address]
        with self._log("bootstrap") as log, tempfile.TemporaryFile() as request:
            request.write(json.dumps({"settings": self._settings.to_json(), "ports": self._ports.to_dict()}).encode())
            request.seek(0)
            child = self._spawn(command, log, stdin=request)
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                why = "" if time.monotonic() < deadline else f"The node did not {verb} within {timeout_s:.0f} s"
                if self._ray is not None and self._ray.poll() is not None:
                    why = f"Ray ended with code {self._ray.returncode} on this node"
                if why or self._stop:
                    child.kill()
                    child.wait()
                    raise self._failed(why, "bootstrap") if why else _StoppedError
                time.sleep(0.05)
            if child.returncode != 0:
                raise self._failed(f"The node did not {verb}", "bootstrap")

    def _log(self, name: str) -> IO[bytes]:
        return (self._settings.log_dir / f"{name}-{self._settings.node}.log").open("ab")

    def _failed(self, what: str, log: str) -> UnavailableError:
        path = self._settings.log_dir / f"{log}-{self._settings.node}.log"
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-12:])
        return UnavailableError(f"{what}.\n{tail}", hint=f"The whole log is in {path}; Ray's own is beside it.")

    def _write(self, status: str) -> None:
        self._state = replace(self._state, status=status)
        path = self._settings.node_state_path
        draft = path.with_suffix(".tmp")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self._state), indent=1))
        draft.replace(path)


class _StoppedError(Exception):
    """Somebody asked to stop while we were starting."""


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
    for folder in (settings.node_dir, settings.run_dir, settings.run_dir / "t"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ConfigurationError(f"{folder} belongs to another user.", hint="Remove it or choose another --name.")
        folder.chmod(0o700)
    settings.journal_dir.mkdir(exist_ok=True)
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir()


def _forget(settings: Settings) -> None:
    """Remove what describes a running node; what it recorded stays."""
    settings.node_state_path.unlink(missing_ok=True)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
