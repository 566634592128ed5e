"""A thread that reads how much memory this process and its children hold, and tells when it is more than declared."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

POLL_S = 0.2
# Memory cannot grow without work: a tick in which the process used less CPU than this, with no child, reads nothing.
IDLE_CPU_NS = 1_000_000

# Takes the bytes held and the bytes allowed.
OnBreach = Callable[[int, int], None]


def held_bytes(pid: int | str = "self", proc: Path = Path("/proc")) -> int:
    """Return the bytes that the process and all its children hold in memory and swap.

    Counted are anonymous and shared-memory pages, not those of files, which the kernel can drop.
    """
    total = _own_bytes(proc / str(pid) / "status")
    return total + sum(held_bytes(child, proc) for child in children_of(pid, proc))


def children_of(pid: int | str = "self", proc: Path = Path("/proc")) -> list[int]:
    """Return the process ids of the direct children, by whatever thread they were started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(proc / str(pid) / "task"):  # noqa: PTH208  # names only, on every tick
            with contextlib.suppress(OSError):
                found += map(int, (proc / str(pid) / "task" / task / "children").read_bytes().split())
    return found


def _own_bytes(status: Path) -> int:
    kib = 0
    with contextlib.suppress(OSError):
        for line in status.read_bytes().splitlines():
            if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
                kib += int(line.split()[1])
    return kib << 10


class MemoryWatchdog:
    """Calls `on_breach` once, from its thread, when this process and its children hold more than `limit_bytes`.

    `first` is done in that thread before the watch begins: work that would make its caller wait.
    """

    def __init__(
        self, limit_bytes: int, on_breach: OnBreach, *, poll_s: float = POLL_S, first: Callable[[], None] | None = None
    ) -> None:
        self._limit_bytes = limit_bytes
        self._on_breach = on_breach
        self._poll_s = poll_s
        self._first = first
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended, at once when called from it."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        if self._first is not None:
            self._first()
        cpu_ns = 0
        children = True
        while not self._stopped.wait(self._poll_s):
            now_ns = time.process_time_ns()
            if now_ns - cpu_ns < IDLE_CPU_NS and not children:
                continue
            cpu_ns = now_ns
            pids = children_of()
            children = bool(pids)
            held = _own_bytes(Path("/proc/self/status")) + sum(map(held_bytes, pids))
            if held > self._limit_bytes:
                _log.error("memory held %d bytes, allowed %d bytes", held, self._limit_bytes)
                self._on_breach(held, self._limit_bytes)
                return
