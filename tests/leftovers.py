"""Finds what a test run left on the machine, by a marker in the environment, so that nobody else's is ever touched."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil


def marked_processes(run_id: str) -> Iterator[int]:
    """Yield the id of every live process that carries the run's marker, and of every descendant; never our own."""
    wanted = f"TEST_RUN_ID={run_id}".encode()
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(OSError, psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and wanted in _environment(process.pid).split(b"\0"):
                yield process.pid


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def wait_until_gone(run_id: str, *, timeout_s: float) -> list[str]:
    """Wait for the run's processes to end; return those that did not, and end them so that they harm no later run."""
    deadline = time.monotonic() + timeout_s
    while (pids := list(marked_processes(run_id))) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            left.append(f"{pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
    return left


def open_listeners(known: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return the (address, port) of every TCP listener on the machine that is not on loopback and not in `known`."""
    from actors.listeners import _listening_inodes, is_loopback

    return {at for _, at in _listening_inodes() if not is_loopback(at[0])} - known


def foreign_files(folder: Path) -> list[str]:
    """Return what is in the run's folder beside the folders that pytest itself keeps there."""
    return sorted(str(path) for path in folder.iterdir() if not path.name.startswith("pytest-of-"))
