"""The gate of a node whose shipper has just said how much waits."""

from __future__ import annotations

from pathlib import Path

from cluster.clock import Clock, SystemClock
from cluster.journal.backlog import Backlog
from cluster.journal.gate import JournalGate


def open_gate(directory: Path, *, limit_bytes: int = 1 << 40, reserve_bytes: int = 0, clock: Clock | None = None) -> JournalGate:
    clock = clock or SystemClock()
    directory.mkdir(parents=True, exist_ok=True)
    Backlog(0, clock.monotonic_us()).write(directory)
    return JournalGate(directory, limit_bytes=limit_bytes, reserve_bytes=reserve_bytes, clock=clock)
