"""A supervisor in a session of its own, which outlives the command that started it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cli.output import OUTPUT
from cluster.errors import SovereignError, UnavailableError, from_problem

if TYPE_CHECKING:
    from actors.run_state import RunState

# Longer than any step of a supervisor, which gives up by itself and says which part did not come.
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1

S = TypeVar("S", bound="RunState")


def start_detached(arguments: list[str], log: Path, states: Callable[[], list[S]], *, what: str, doing: str) -> S:
    """Run `sovereign` with `arguments`, which keep it in the foreground, and return what it wrote when it is ready.

    `states` reads what supervisors here have written. Raises the error that it ended with, or UnavailableError.
    """
    log.parent.mkdir(exist_ok=True)
    # -P: a folder named `cli` where the operator happens to stand is not ours.
    command = [sys.executable, "-P", "-m", "cli.main", *arguments]
    with log.open("ab") as stream:
        begin = stream.tell()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
    try:
        return _await_ready(child, log, begin, states, what=what, doing=doing)
    except BaseException:
        # Whatever stopped us from waiting, nobody was told that it runs: end it the way its own command does.
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
        raise


def _await_ready(
    child: subprocess.Popen[bytes], log: Path, begin: int, states: Callable[[], list[S]], *, what: str, doing: str
) -> S:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with OUTPUT.progress(doing) as progress, log.open(errors="replace") as lines:
        lines.seek(begin)
        while time.monotonic() < deadline:
            ended = child.poll()
            for line in lines:
                if line.startswith("· "):
                    progress(line[2:].strip())
            if ended is not None:
                raise why_it_ended(log, begin, ended)
            for state in states():
                if state.pid == child.pid and state.status == "ready":
                    return state
            time.sleep(POLL_S)
    raise UnavailableError(f"The {what} was not ready within {READY_TIMEOUT_S:.0f} s.", hint=f"The whole log is in {log}.")


def why_it_ended(log: Path, begin: int, code: int) -> SovereignError:
    """Return the error that the child left as the last JSON line of its log."""
    with log.open(errors="replace") as lines:
        lines.seek(begin)
        told = [line for line in lines if line.startswith('{"error"')]
    if told:
        with contextlib.suppress(ValueError):
            return from_problem(json.loads(told[-1])["error"])
    return UnavailableError(f"The supervisor ended with code {code}.", hint=f"The whole log is in {log}.")
