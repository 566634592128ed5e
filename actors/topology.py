"""One cluster under one home: its first node, which everything else joins.

When Ray's head ends by itself, it and the platform's parts are started again on the same ports: what counts is in the
ledger, the journals and the checkpoints, none of it in Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from actors import supervisor
from actors.marked import end_marked
from actors.ray_environment import Ports, head_command, ray_environment, write_haproxy_launcher
from actors.run_state import ClusterState, read_state
from actors.supervisor import START_TIMEOUT_S, Progress, StoppedError, Supervisor, own_folders, refuse_exposure
from cluster import wiring
from cluster.agents.cgroup import remove_cgroups
from cluster.agents.sandbox import SandboxWeakWarning
from cluster.errors import ConflictError
from cluster.identity.secret_file import write_secret
from cluster.settings import Settings


def run(settings: Settings, *, on_progress: Progress, on_ready: Callable[[ClusterState], None]) -> int:
    """Start the cluster, stay until SIGTERM or SIGINT, end everything that was started; return the exit code.

    Raises ConfigurationError when the settings or the machine do not allow a start, ConflictError when a cluster of
    this home runs already, UnavailableError when a part did not come up. After a raise nothing is left running.
    """
    refuse_exposure(settings)
    with _only_one(settings):  # first: it clears what a supervisor that was killed left, where this one puts its own
        return _Head.of(settings, on_progress).run(on_ready)


def stop(settings: Settings, *, timeout_s: float = 60.0, on_progress: Progress = lambda _: None) -> bool:
    """End the cluster of this home, and only that; return whether anything was running."""
    forget = partial(_forget, settings)
    return supervisor.stop(read_state(settings), "", forget, timeout_s=timeout_s, on_progress=on_progress)


class _Head(Supervisor[ClusterState]):
    """The first node."""

    command = "sovereign up"
    begin, finish, finish_timeout_s = "start", "stop", 20.0
    finishes_unready = True

    @classmethod
    def of(cls, settings: Settings, progress: Progress) -> _Head:
        _make_folders(settings)
        cluster_id, ports = secrets.token_hex(8), Ports.choose(settings)
        if settings.local_model:
            settings = settings.model_copy(update={"local_model_url": f"http://{settings.host}:{ports.local_model}/v1"})
        settings = _with_sandbox(settings, progress)
        write_haproxy_launcher(settings)
        state = ClusterState(
            cluster_id=cluster_id,
            status="starting",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            http_url=f"http://{settings.host}:{ports.http}",
            ray_address=f"{settings.host}:{ports.gcs}",
            ports=ports.to_dict(),
            started_at=time.time(),
        )
        return cls(settings, ports, ray_environment(settings, ports, cluster_id, os.environ), state, progress)

    @property
    def state_path(self) -> Path:
        return self._settings.state_path

    def ray_command(self) -> list[str]:
        return head_command(self._settings, self._ports)

    def await_ray(self) -> None:
        """Wait until the GCS listens."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._stop:
                raise StoppedError
            if self._ray is None or self._ray.poll() is not None:
                raise self.failed("Ray did not start", "ray")
            with contextlib.suppress(OSError), socket.create_connection((self._settings.host, self._ports.gcs), 1):
                return
            time.sleep(0.05)
        raise self.failed(f"Ray did not listen within {START_TIMEOUT_S:.0f} s", "ray")

    def keep_logs(self) -> None:
        """Keep what Ray's processes said: their folder goes with the cluster."""
        with contextlib.suppress(OSError):
            session = self._settings.run_dir / "ray" / "session_latest" / "logs"
            shutil.copytree(session, self._settings.log_dir / "ray", dirs_exist_ok=True, symlinks=True)

    def clear(self) -> None:
        """Remove everything but what a start puts there, sockets above all."""
        for folder in self._settings.run_dir.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        (self._settings.run_dir / "t").mkdir(mode=0o700)
        write_haproxy_launcher(self._settings)
        remove_cgroups(self._settings.run_dir.name)

    def forget(self) -> None:
        _forget(self._settings)


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold this home's lock, or raise ConflictError."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                f"A cluster already runs under {settings.home}.",
                hint="See it with `sovereign status`, end it with `sovereign down`, or set SOVEREIGN_HOME to another folder.",
            ) from None
        if (earlier := read_state(settings)) is not None:
            end_marked(earlier.cluster_id)  # a supervisor that was killed could not clean up
            _forget(settings)
        yield


def _with_sandbox(settings: Settings, progress: Progress) -> Settings:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SandboxWeakWarning)
        settings = wiring.choose_sandbox(settings)
    for warning in caught:
        progress(f"warning: {warning.message}")
    return settings


def _make_folders(settings: Settings) -> None:
    folders = (settings.home, settings.secret_dir, settings.run_dir, settings.run_dir / "t")
    own_folders(folders, "Remove it or set SOVEREIGN_HOME.")
    for folder in (settings.log_dir, settings.journal_dir, settings.checkpoint_dir):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir()
    write_secret(settings.secret_dir / "ray-token", secrets.token_hex(32))
    write_secret(settings.secret_dir / "master-key", secrets.token_hex(32))


def _forget(settings: Settings) -> None:
    """Remove what describes a running cluster; what it recorded stays."""
    settings.state_path.unlink(missing_ok=True)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
