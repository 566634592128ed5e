"""What every supervisor does: start Ray, hand over to a bootstrap, watch, start again what ended, and end all of it in order.

A supervisor holds no Ray connection. It runs two children: Ray's processes of this node, and for a moment
`serve_apps.bootstrap`, a driver that creates or drains the platform's parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, Any, Generic

import psutil

from actors.listeners import assert_private, is_loopback
from actors.marked import end_marked, marked, reap_orphans
from actors.ray_environment import Ports
from actors.restart_bound import RestartBound
from actors.run_state import RunState, S, write_state
from cluster.agents.cgroup import remove_cgroups
from cluster.errors import ConfigurationError, SovereignError, UnavailableError
from cluster.settings import PROJECT_ROOT, Settings

Progress = Callable[[str], None]
START_TIMEOUT_S = 120.0
PR_SET_CHILD_SUBREAPER = 36
# Ray that ends oftener than so will not be mended by one more start.
RESTARTS, RESTARTS_WITHIN_S = 5, 600.0


class Supervisor(ABC, Generic[S]):
    """One run of a node, from its folders to its last process. Every process of it carries the cluster's marker."""

    # What an operator starts it with.
    command: str
    # What the bootstrap is told to do when the node starts and when it ends, and how long the latter may take.
    begin: str
    finish: str
    finish_timeout_s: float
    # Whether a node that did not become ready may have what is to be drained.
    finishes_unready = False

    def __init__(self, settings: Settings, ports: Ports, env: dict[str, str], state: S, progress: Progress) -> None:
        self._settings = settings
        self._ports = ports
        self._env = env
        self._state = state
        self._progress = progress
        self._ray: subprocess.Popen[bytes] | None = None
        # Names this start of Ray, by which what it brings up is told from what an earlier one has left.
        self.start_id = ""
        self._stop = False

    @property
    @abstractmethod
    def state_path(self) -> Path:
        """Where the state is written."""

    @abstractmethod
    def ray_command(self) -> list[str]:
        """Return what runs Ray's processes of this node."""

    @abstractmethod
    def clear(self) -> None:
        """Make ready for one more start what Ray and its parts, which all ended, left of themselves."""

    @abstractmethod
    def forget(self) -> None:
        """Remove what describes a running node; what it recorded stays."""

    def await_ray(self) -> None:
        """Wait until the bootstrap can reach Ray."""

    def may_start_again(self) -> bool:
        """Whether there is still a cluster to start for."""
        return True

    def keep_logs(self) -> None:
        """Keep what else says why Ray ended."""

    def run(self, on_ready: Callable[[S], None]) -> int:
        """Start, stay until SIGTERM or SIGINT, end everything that was started; return the exit code.

        Raises UnavailableError when a part did not come up, or ended too often.
        """
        # Orphans of the node come to us, so that none outlives us unseen.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            self._start()
            on_ready(self._state)
            return self._watch()
        except StoppedError:
            return 0
        except BaseException:
            self.keep_logs()
            raise
        finally:
            self._tear_down()

    def _start(self) -> None:
        self._write("starting")
        self._progress("starting Ray")
        self.start_id = secrets.token_hex(8)
        with self._log("ray") as log:
            self._ray = self._spawn(self.ray_command(), log)
        self.await_ray()
        self._bootstrap(self.begin, START_TIMEOUT_S)
        assert_private(self._settings, (p.pid for p in self._processes()))
        self._write("ready")

    def _processes(self) -> Iterable[psutil.Process]:
        return marked(self._state.cluster_id, self._settings.node)

    def _end_processes(self, *, gently: bool = True) -> None:
        end_marked(self._state.cluster_id, self._settings.node, gently=gently)

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
        """Start Ray that ended once more; False when there is nothing to start for.

        Raises UnavailableError when it ends too often.
        """
        code = self._ray.returncode if self._ray is not None else None
        if not bound.allows(time.monotonic()):
            raise UnavailableError(
                f"Ray ended by itself with code {code}, after {bound.limit} restarts in {bound.within_s / 60:.0f} minutes. "
                "What runs here ends; nothing that was registered or recorded is lost.",
                hint=f"See {self._log_path('ray')} and {self._settings.log_dir / 'ray'} for the reason, then start it with "
                f"`{self.command}`.",
            )
        self._progress(f"Ray ended by itself with code {code} (see {self._log_path('ray')}); starting it again")
        self._write("starting")
        self.keep_logs()
        self._end_processes(gently=False)
        self.clear()
        if not self.may_start_again():
            return False
        try:
            self._start()
        except UnavailableError as e:
            # It ended again while it started, perhaps: that counts as one more end.
            self._progress(str(e))
            if self._ray is not None:
                self._ray.kill()
                self._ray.wait()
        return True

    def _tear_down(self) -> None:
        ray, ready = self._ray, self._state.status == "ready"
        self._write("stopping")
        if ray is not None and ray.poll() is None:
            if ready or self.finishes_unready:
                self._progress("draining agents and shipping what is left")
                self._stop = False
                with contextlib.suppress(SovereignError, StoppedError):
                    self._bootstrap(self.finish, self.finish_timeout_s)
            ray.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ray.wait(10)
        self._progress("ending processes")
        self._end_processes()
        remove_cgroups(self._settings.run_dir.name)
        if ray is not None:
            ray.wait()
        self.forget()

    def _spawn(self, command: list[str], log: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in our terminal reaches us alone, and we end the rest in order.
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | more
        return subprocess.Popen(command, env=self._env, cwd=PROJECT_ROOT, start_new_session=True, text=False, **streams)

    def _bootstrap(self, verb: str, timeout_s: float) -> None:
        command = [sys.executable, "-m", "serve_apps.bootstrap", verb, self._state.ray_address]
        with self._log("bootstrap") as log, tempfile.TemporaryFile() as request:
            asked = {"settings": self._settings.to_json(), "ports": self._ports.to_dict(), "start": self.start_id}
            request.write(json.dumps(asked).encode())
            request.seek(0)
            child = self._spawn(command, log, stdin=request, stdout=subprocess.PIPE)
            output = child.stdout or io.BytesIO()
            os.set_blocking(output.fileno(), False)
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                for line in output:
                    self._progress(line.decode().strip())
                why = "" if time.monotonic() < deadline else f"The platform's parts did not {verb} within {timeout_s:.0f} s"
                if self._ray is not None and self._ray.poll() is not None:
                    why = f"Ray ended with code {self._ray.returncode} before the platform's parts could {verb}"
                if why or self._stop:
                    child.kill()
                    child.wait()
                    raise self.failed(why, "bootstrap") if why else StoppedError
                time.sleep(0.02)
            for line in output:
                self._progress(line.decode().strip())
            if child.returncode != 0:
                raise self.failed(f"The platform's parts did not {verb}", "bootstrap")

    def _log_path(self, name: str) -> Path:
        node = f"-{self._settings.node}" if self._settings.node else ""
        return self._settings.log_dir / f"{name}{node}.log"

    def _log(self, name: str) -> IO[bytes]:
        return self._log_path(name).open("ab")

    def failed(self, what: str, log: str) -> UnavailableError:
        """Return the error of a part that did not come up, with the end of its log."""
        path = self._log_path(log)
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-12:]) if path.exists() else ""
        return UnavailableError(f"{what}.\n{tail}", hint=f"The whole log is in {path}.")

    def _write(self, status: str) -> None:
        self._state = replace(self._state, status=status)
        write_state(self.state_path, self._state)


class StoppedError(Exception):
    """Somebody asked to stop while we were starting."""


def stop(state: RunState | None, node: str, forget: Callable[[], None], *, timeout_s: float, on_progress: Progress) -> bool:
    """Have the supervisor of `state` end, then end whatever of it is left; return whether anything was running."""
    if state is None:
        return False
    was_alive = state.alive
    if was_alive:
        on_progress(f"asking the supervisor (pid {state.pid}) to stop")
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            supervisor.wait(timeout_s)
    left = end_marked(state.cluster_id, node)
    forget()
    return was_alive or left > 0


def refuse_exposure(settings: Settings) -> None:
    """Raise ConfigurationError when other machines could reach what is started, and nobody asked for that."""
    if not is_loopback(settings.host) and not settings.expose:
        raise ConfigurationError(
            f"SOVEREIGN_HOST is {settings.host}, which other machines can reach.",
            hint="Set SOVEREIGN_EXPOSE=true if that is meant; TLS and a firewall are then yours to provide.",
        )


def own_folders(folders: Iterable[Path], hint: str) -> None:
    """Make folders that are this user's alone; raises ConfigurationError for one that is another's."""
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
        if owner != os.getuid():
            raise ConfigurationError(f"{folder} belongs to another user (uid {owner}).", hint=hint)
        folder.chmod(0o700)
