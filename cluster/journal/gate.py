"""Whether this node may take on anything new: only what it can record to the end, now and later.

Each process asks for itself and no actor is asked: what the shipper last said in its file, and how much room the disk has,
looked at again at most once a second, and for each status. Fails closed: what is not known to have room is refused.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster.clock import Clock, SystemClock, utc
from cluster.errors import JournalFullError
from cluster.journal.backlog import Backlog

log = logging.getLogger(__name__)

SAMPLE_US: Final = 1_000_000
# A shipper speaks every second and comes back within seconds when it is killed.
SILENT_US: Final = 60_000_000
# Once closed, the gate opens with a tenth to spare, so that it does not flap at the edge.
SPARE: Final = 10
LONGEST_RETRY_S: Final = 30.0
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing new is admitted, and when to ask again."""

    why: str
    retry_after_s: float


def why_closed(
    backlog: Backlog | None, free_bytes: int, now_us: int, *, limit_bytes: int, reserve_bytes: int, was_closed: bool
) -> Closed | None:
    """Return why nothing new may be admitted, or None when it may; `now_us` is of the monotonic clock."""
    needed = reserve_bytes + (reserve_bytes // SPARE if was_closed else 0)
    if free_bytes < needed:
        return Closed(
            f"its journals' disk has {free_bytes / _MIB:,.1f} MiB free, and {needed / _MIB:,.1f} MiB are kept for what runs",
            10.0,
        )
    if backlog is None or not 0 <= now_us - backlog.measured_us <= SILENT_US:
        return Closed("its shipper does not say how many facts wait for the lake", 2.0)
    if backlog.waiting_bytes >= limit_bytes - (limit_bytes // SPARE if was_closed else 0):
        since = (
            f"; nothing was shipped since {utc(backlog.stuck_since_us):%Y-%m-%d %H:%M:%S} UTC" if backlog.stuck_since_us else ""
        )
        return Closed(
            f"{backlog.waiting_bytes / _MIB:,.1f} MiB of facts wait for the lake, and {limit_bytes / _MIB:,.1f} MiB may{since}",
            min(LONGEST_RETRY_S, backlog.retry_after_s + 1.0),
        )
    return None


class JournalGate:
    """One process's view of its node. `check` is cheap enough for every call."""

    def __init__(self, directory: Path, *, limit_bytes: int, reserve_bytes: int, clock: Clock | None = None) -> None:
        """Watch the journals below `directory`, of which `limit_bytes` may wait and for which `reserve_bytes` stay free."""
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._clock = clock or SystemClock()
        self._look_at_us = 0
        self._backlog: Backlog | None = None
        self._free_bytes = 0
        self._closed: Closed | None = None

    def check(self) -> None:
        """Return when something new may be taken on; raises JournalFullError otherwise."""
        self._look()
        if self._closed is not None:
            raise JournalFullError(
                f"This node admits nothing new now: {self._closed.why}.",
                hint="Nothing was started, what runs goes on, and nothing is lost. Retry later; it goes on by itself when there "
                "is room. Operators find what to do in docs/operators.md.",
                retry_after_s=self._closed.retry_after_s,
            )

    def status(self) -> dict[str, Any]:
        """Return the node's condition as JSON values: as it is now, because other processes looked at other moments."""
        self._look_at_us = 0
        self._look()
        backlog = self._backlog
        stuck_us = backlog.stuck_since_us if backlog else 0
        return {
            "admits": self._closed is None,
            "why_not": self._closed.why if self._closed else "",
            "backlog_bytes": backlog.waiting_bytes if backlog else None,
            "limit_bytes": self._limit_bytes,
            "nothing_shipped_since": utc(stuck_us).isoformat(timespec="seconds") if stuck_us else None,
            "disk_free_bytes": self._free_bytes,
            "disk_reserve_bytes": self._reserve_bytes,
        }

    def _look(self) -> None:
        now_us = self._clock.monotonic_us()
        if now_us < self._look_at_us:
            return
        self._backlog = Backlog.read(self._directory)
        self._free_bytes = _free_bytes(self._directory)
        before, self._closed = (
            self._closed,
            why_closed(
                self._backlog,
                self._free_bytes,
                # Read after the file: the shipper may have written in between.
                self._clock.monotonic_us(),
                limit_bytes=self._limit_bytes,
                reserve_bytes=self._reserve_bytes,
                was_closed=self._closed is not None,
            ),
        )
        # Last: a look that fails says nothing, and the next one who asks looks again.
        self._look_at_us = now_us + SAMPLE_US
        if self._closed is not None and before is None:
            log.warning("nothing new is admitted here: %s", self._closed.why)
        elif self._closed is None and before is not None:
            log.warning("new work is admitted here again")


def _free_bytes(directory: Path) -> int:
    """Return what this user may still write on the disk; 0 when that can't be found out."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
