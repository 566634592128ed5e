"""Time as a collaborator, so that decisions and tests never read the machine's clock by themselves."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for records and monotonic time for durations, both in whole microseconds."""

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC. May jump; never subtract two of them."""
        ...

    def monotonic_us(self) -> int:
        """Return microseconds of a clock that only goes forward. Only differences mean something."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000

    def monotonic_us(self) -> int:
        """Return microseconds since an arbitrary start."""
        return time.monotonic_ns() // 1_000


class FakeClock:
    """A clock that moves only when told to; both readings move together."""

    def __init__(self, now_us: int = 1_790_000_000_000_000) -> None:
        self._now_us = now_us
        self._monotonic_us = 0

    def now_us(self) -> int:
        """Return the time set, in microseconds since 1970-01-01 UTC."""
        return self._now_us

    def monotonic_us(self) -> int:
        """Return the microseconds advanced so far."""
        return self._monotonic_us

    def advance(self, us: int) -> None:
        """Move both clocks forward by `us` microseconds."""
        self._now_us += us
        self._monotonic_us += us


def utc(us: int) -> datetime:
    """Return the aware UTC datetime of `us` microseconds since 1970-01-01, without a float on the way."""
    seconds, micros = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, tz=UTC).replace(microsecond=micros)
