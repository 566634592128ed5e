"""The supervisor of one node: starts Ray and the platform's parts, watches them, and ends everything that it started.

The supervisor itself holds no Ray connection. It runs two children: `actors.ray_head`, Ray's processes, and for a moment
`serve_apps.bootstrap`, the driver that creates the platform's actors and the way in. When the head ends by itself, both are
started again on the same ports: what counts is in the ledger, the journals and the checkpoints, none of it in Ray.
Every process of the cluster carries the same marker in its environment, which is how `stop` finds what is left, and finds
nothing that is not ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from actors.listeners import assert_private, is_loopback
from actors.ray_environment import MARKER, Ports, head_command, ray_environment, write_haproxy_launcher
from actors.restart_bound import RestartBound
from cluster import wiring
from cluster.agents.cgroup import remove_cgroups
from cluster.agents.sandbox import SandboxWeakWarning
from cluster.errors import ConfigurationError, ConflictError, SovereignError, UnavailableError
from cluster.identity.secret_file import write_secret
from cluster.settings import PROJECT_ROOT, Settings

Progress = Callable[[str], None]
START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 20.0
# A head that ends oftener than so will not be mended by one more start.
HEAD_RESTARTS, HEAD_RESTARTS_WITHIN_S = 5, 600.0
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What runs under one home; `status` is starting, ready or stopping."""

    cluster_id: str
    status: str
    pid: int
    pid_started: float
    http_url: str
    ray_address: str
    ports: dict[str, int]
    started_at: float
    version: int = 1

    @property
    def metrics_url(self) -> str:
        """Where the node's merged metrics are, in Prometheus' text format."""
        return f"{self.http_url.rpartition(':')[0]}:{self.ports['node_metrics']}/metrics"

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this is still the process of that id; one that nobody has waited for is dead."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.pid_started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def read_state(settings: Settings) -> ClusterState | None:
    """Return what was last written for this home, or None; ask `alive` whether it still holds."""
    try:
        return ClusterState(**json.loads(settings.state_path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as e:
        raise ConfigurationError(
            f"{settings.state_path} cannot be read: {e}", hint="If no cluster runs here, delete the file."
        ) from None


def run(settings: Settings, *, on_progress: Progress, on_ready: Callable[[ClusterState], None]) -> int:
    """Start the cluster, stay until SIGTERM or SIGINT, end everything that was started; return the exit code.

    Raises ConfigurationError when the settings or the machine do not allow a start, ConflictError when a cluster of
    this home runs already, UnavailableError when a part did not come up. After a raise nothing is left running.
    """
    if not is_loopback(settings.host) and not settings.expose:
        raise ConfigurationError(
            f"SOVEREIGN_HOST is {settings.host}, which other machines can reach.",
            hint="Set SOVEREIGN_EXPOSE=true if that is meant; TLS and a firewall are then yours to provide.",
        )
    with _only_one(settings):  # first: it clears what a supervisor that was killed left, where this one puts its own
        return _Supervisor(settings, on_progress).run(on_ready)


def stop(settings: Settings, *, timeout_s: float = 60.0, on_progress: Progress = lambda _: None) -> bool:
    """End the cluster of this home, and only that; return whether anything was running."""
    state = read_state(settings)
    if state is None:
        return False
    was_alive = state.alive
    if was_alive:
        on_progress(f"asking the supervisor (pid {state.pid}) to stop")
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            supervisor.wait(timeout_s)
    left = end_marked(state.cluster_id)
    _forget(settings)
    return was_alive or left > 0


def marked(cluster_id: str, node: str = "") -> Iterator[psutil.Process]:
    """Yield every live process on this machine that carries this cluster's marker, except the caller; of one `node` if named."""
    wanted = {f"{MARKER}={cluster_id}".encode()} | ({f"SOVEREIGN_NODE={node}".encode()} if node else set())
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted <= set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")):
                yield process


def end_marked(cluster_id: str, node: str = "", *, gently: bool = True, grace_s: float = 3.0) -> int:
    """End every process with the marker, of one `node` if named, first gently unless told otherwise; return their number."""
    seen: set[int] = set()
    first = psutil.Process.terminate if gently else psutil.Process.kill
    for send in (first, psutil.Process.kill, psutil.Process.kill):
        processes = list(marked(cluster_id, node))
        if not processes:
            break
        for process in processes:
            seen.add(process.pid)
            with contextlib.suppress(psutil.Error):
                send(process)
        psutil.wait_procs(processes, timeout=grace_s)
    return len(seen)


class _Supervisor:
    """One run of a cluster, from the first folder to the last process."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._progress = progress
        self._cluster_id = secrets.token_hex(8)
        self._stop = False
        self._head: subprocess.Popen[bytes] | None = None
        _make_folders(settings)
        self._ports = Ports.choose(settings)
        if settings.local_model:
            url = f"http://{settings.host}:{self._ports.local_model}/v1"
            settings = settings.model_copy(update={"local_model_url": url})
        self._settings = settings = self._with_sandbox(settings)
        write_haproxy_launcher(settings)
        self._env = ray_environment(settings, self._ports, self._cluster_id, os.environ)
        self._state = ClusterState(
            cluster_id=self._cluster_id,
            status="starting",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            http_url=f"http://{settings.host}:{self._ports.http}",
            ray_address=f"{settings.host}:{self._ports.gcs}",
            ports=self._ports.to_dict(),
            started_at=time.time(),
        )

    def run(self, on_ready: Callable[[ClusterState], None]) -> int:
        # Orphans of the cluster come to us, so that none outlives us unseen.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            self._start()
            on_ready(self._state)
            return self._watch()
        except _StoppedError:
            return 0
        except BaseException:
            self._keep_ray_logs()
            raise
        finally:
            self._tear_down()

    def _start(self) -> None:
        self._write("starting")
        self._progress("starting Ray")
        with self._log("ray") as log:
            self._head = self._spawn(head_command(self._settings, self._ports), log)
        self._wait_for_gcs(self._head)
        self._bootstrap("start", START_TIMEOUT_S)
        assert_private(self._settings, (p.pid for p in marked(self._cluster_id)))
        self._write("ready")

    def _with_sandbox(self, settings: Settings) -> Settings:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SandboxWeakWarning)
            settings = wiring.choose_sandbox(settings)
        for warning in caught:
            self._progress(f"warning: {warning.message}")
        return settings

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _watch(self) -> int:
        bound = RestartBound(HEAD_RESTARTS, HEAD_RESTARTS_WITHIN_S)
        while not self._stop:
            if self._head is None or self._head.poll() is not None:
                self._start_again(bound)
            else:
                reap_orphans(self._head.pid)
                time.sleep(0.2)
        return 0

    def _start_again(self, bound: RestartBound) -> None:
        """Start a head that ended; raises UnavailableError when it ends too often."""
        code = self._head.returncode if self._head is not None else None
        log = self._settings.log_dir / "ray.log"
        if not bound.allows(time.monotonic()):
            raise UnavailableError(
                f"Ray ended by itself with code {code}, after {bound.limit} restarts in {bound.within_s / 60:.0f} minutes. "
                "The cluster ends; nothing that was registered or recorded is lost.",
                hint=f"See {log} and {self._settings.log_dir / 'ray'} for the reason, then start it with `sovereign up`.",
            )
        self._progress(f"Ray ended by itself with code {code} (see {log}); starting it again")
        self._write("starting")
        self._keep_ray_logs()
        end_marked(self._cluster_id, gently=False)
        _clear_run_dir(self._settings)
        try:
            self._start()
        except UnavailableError as e:
            # It ended again while it started, perhaps: that counts as one more end.
            self._progress(str(e))
            if self._head is not None:
                self._head.kill()
                self._head.wait()

    def _tear_down(self) -> None:
        self._write("stopping")
        head = self._head
        if head is not None and head.poll() is None:
            self._progress("draining agents and shipping what is left")
            with contextlib.suppress(SovereignError, _StoppedError):
                self._stop = False
                self._bootstrap("stop", DRAIN_TIMEOUT_S)
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(10)
        self._progress("ending processes")
        end_marked(self._cluster_id)
        remove_cgroups(self._settings.run_dir.name)
        if head is not None:
            head.wait()
        _forget(self._settings)

    def _spawn(self, command: list[str], log: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in our terminal reaches us alone, and we end the rest in order.
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | more
        return subprocess.Popen(command, env=self._env, cwd=PROJECT_ROOT, start_new_session=True, text=False, **streams)

    def _wait_for_gcs(self, head: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._stop:
                raise _StoppedError
            if head.poll() is not None:
                raise self._failed("Ray did not start", "ray")
            with contextlib.suppress(OSError), socket.create_connection((self._settings.host, self._ports.gcs), 1):
                return
            time.sleep(0.05)
        raise self._failed(f"Ray did not listen within {START_TIMEOUT_S:.0f} s", "ray")

    def _bootstrap(self, verb: str, timeout_s: float) -> None:
        command = [sys.executable, "-m", "serve_apps.bootstrap", verb, self._state.ray_address]
        with self._log("bootstrap") as log, tempfile.TemporaryFile() as request:
            request.write(json.dumps({"settings": self._settings.to_json(), "ports": self._ports.to_dict()}).encode())
            request.seek(0)
            child = self._spawn(command, log, stdin=request, stdout=subprocess.PIPE)
            output = child.stdout or io.BytesIO()
            os.set_blocking(output.fileno(), False)
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                for line in output:
                    self._progress(line.decode().strip())
                if self._stop or time.monotonic() > deadline:
                    child.kill()
                    child.wait()
                    if self._stop:
                        raise _StoppedError
                    raise self._failed(f"The platform's parts did not {verb} within {timeout_s:.0f} s", "bootstrap")
                time.sleep(0.02)
            for line in output:
                self._progress(line.decode().strip())
            if child.returncode != 0:
                raise self._failed(f"The platform's parts did not {verb}", "bootstrap")

    def _keep_ray_logs(self) -> None:
        """Keep what Ray's processes said of a start that failed; their folder goes with the cluster."""
        with contextlib.suppress(OSError):
            session = self._settings.run_dir / "ray" / "session_latest" / "logs"
            shutil.copytree(session, self._settings.log_dir / "ray", dirs_exist_ok=True, symlinks=True)

    def _log(self, name: str) -> IO[bytes]:
        return (self._settings.log_dir / f"{name}.log").open("ab")

    def _failed(self, what: str, log: str) -> UnavailableError:
        path = self._settings.log_dir / f"{log}.log"
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-12:]) if path.exists() else ""
        return UnavailableError(f"{what}.\n{tail}", hint=f"The whole log is in {path}.")

    def _write(self, status: str) -> None:
        self._state = replace(self._state, status=status)
        path = self._settings.state_path
        draft = path.with_suffix(".tmp")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self._state), indent=1))
        draft.replace(path)


class _StoppedError(Exception):
    """Somebody asked to stop while we were starting."""


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


def _make_folders(settings: Settings) -> None:
    for folder in (settings.home, settings.secret_dir, settings.run_dir, settings.run_dir / "t"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise ConfigurationError(
                f"{folder} belongs to another user (uid {status.st_uid}).", hint="Remove it or set SOVEREIGN_HOME."
            )
        folder.chmod(0o700)
    for folder in (settings.log_dir, settings.journal_dir, settings.checkpoint_dir):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir()
    write_secret(settings.secret_dir / "ray-token", secrets.token_hex(32))
    write_secret(settings.secret_dir / "master-key", secrets.token_hex(32))


def _clear_run_dir(settings: Settings) -> None:
    """Remove what a head and its parts that ended have left of themselves, sockets above all: the next ones begin anew."""
    for folder in settings.run_dir.iterdir():
        shutil.rmtree(folder, ignore_errors=True)
    (settings.run_dir / "t").mkdir(mode=0o700)
    write_haproxy_launcher(settings)
    remove_cgroups(settings.run_dir.name)


def reap_orphans(head_pid: int) -> None:
    """Collect children that came to us when their own parent died; the head's own code is read by its Popen."""
    for child in psutil.Process().children():
        if child.pid != head_pid:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)


def _forget(settings: Settings) -> None:
    """Remove what describes a running cluster; what it recorded stays."""
    settings.state_path.unlink(missing_ok=True)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
