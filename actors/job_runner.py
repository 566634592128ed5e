"""Runs a job's command and writes down what it used: `python -P -m actors.job_runner -- <command>`, as jobs.py submits it.

It stands between Ray's job server and the command, so that a command that is killed, or that never heard of the platform,
is measured all the same. It imports no Ray and ends as its command ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

import psutil

from actors.job_meter import INTERIM_S, children_cpu_us, open_books, running_job
from actors.ray_internals import JOB_ID_KEY, job_metadata
from cluster.errors import ConfigurationError, SovereignError
from cluster.jobs.job_books import JobBooks
from cluster.journal.usage_event import Outcome
from cluster.settings import Settings

PR_SET_CHILD_SUBREAPER: Final = 36
# Less than the 3 s after which Ray kills whatever of a stopped job is left, this process too.
STOP_GRACE_S: Final = 2.0
# From the shell: the command was not found, or is no program.
NOT_FOUND: Final = 127
NOT_RUNNABLE: Final = 126


def run(command: Sequence[str], books: JobBooks, *, interim_s: float = INTERIM_S) -> int:
    """Run the command to its end and return the exit code to end with; 128 + n when signal n ended it.

    Raises StorageError when the job can't be written down, before anything of it runs.
    """
    # What the command leaves behind when it ends is measured too, and comes to us.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    stopped: list[int] = []
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopped.append(n))

    books.begin()
    try:
        child = subprocess.Popen(list(command))
    except OSError as e:
        print(f"{command[0]} can't be run: {e.strerror}.", file=sys.stderr)
        code = NOT_FOUND if isinstance(e, FileNotFoundError) else NOT_RUNNABLE
        _end(books, Outcome.FAILED, 0, code)
        return code
    kill_at = float("inf")
    next_interim = time.monotonic() + interim_s
    while child.poll() is None:
        if stopped and kill_at == float("inf"):
            kill_at = time.monotonic() + STOP_GRACE_S
            child.send_signal(stopped[0])
        if time.monotonic() >= kill_at:
            child.kill()
        if time.monotonic() >= next_interim:
            next_interim += interim_s
            with contextlib.suppress(SovereignError):  # the difference goes into the next one
                books.interim(children_cpu_us())
        _reap(except_for=child.pid)
        select.select([woken], [], [], max(0.0, min(next_interim, kill_at) - time.monotonic()))
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096, socket.MSG_DONTWAIT)
    _end_what_is_left()
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    outcome = Outcome.CANCELLED if stopped else Outcome.OK if code == 0 else Outcome.FAILED
    _end(books, outcome, children_cpu_us(), code)
    return code


def _end(books: JobBooks, outcome: Outcome, cpu_us: int, code: int) -> None:
    """Write the job's last facts, or say why not: the command has run, and its exit code stands whatever the disk says."""
    try:
        books.end(outcome, cpu_us, code)
    except SovereignError as e:
        print(f"The command ended with {code}, and what it used was not written to the end: {e}", file=sys.stderr)


def _reap(*, except_for: int) -> None:
    """Wait for orphans that came to us; the command itself is its Popen's."""
    for child in psutil.Process().children():
        if child.pid != except_for:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def _end_what_is_left() -> None:
    """End what the command started and left running, until nothing is: Ray would do so a moment later, unmeasured."""
    while left := psutil.Process().children():
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()
        for child in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)


def main(arguments: Sequence[str]) -> int:
    """Run the command after `--` as the job that this process belongs to, and return its exit code."""
    try:
        job, metadata = running_job(), job_metadata()
        if job is None or metadata is None or arguments[:1] != ["--"] or not arguments[1:]:
            raise ConfigurationError("This runs jobs inside a cluster.", hint="Submit one: sovereign job submit -- <command>")
        books = open_books(Settings.load(), job, metadata[JOB_ID_KEY])
        try:
            return run(arguments[1:], books)
        finally:
            # The command has run by now: its exit code stands, whatever the disk says.
            try:
                books.close()
            except SovereignError as e:
                print(e, file=sys.stderr)
    except SovereignError as e:
        print(e, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
