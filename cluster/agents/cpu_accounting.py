"""Whose CPU time it was, when one process works for several calls at once.

The process's CPU between two events (a call enters, a call leaves) is split equally among the calls that were active in
between. An event costs one reading of the clock and a few additions, however many calls are active.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class CpuAccountant:
    """Splits the CPU of this process, children not included, among the active calls. For one thread: the event loop's.

    The sum of what `leave` returned, of `so_far` of the active calls, of `pending_us` and of `idle_us` is exactly what
    the clock advanced since this object was made.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.process_time_ns) -> None:
        self._clock_ns = clock_ns
        self._last_us = clock_ns() // 1_000
        # What a call that had been active all along would have been given, in microseconds.
        self._share_us = 0
        # CPU of active time that does not divide by the number of calls yet; always less than that number.
        self._pending_us = 0
        self._idle_us = 0
        self._entered_at: dict[str, int] = {}

    @property
    def idle_us(self) -> int:
        """CPU used while no call was active: start-up, heartbeats, shipping."""
        return self._idle_us

    @property
    def pending_us(self) -> int:
        """The remainder that is carried to the next interval; zero whenever at most one call is active."""
        return self._pending_us

    def enter(self, call_id: str) -> None:
        """Begin to charge `call_id`, which must not be active; raises ValueError."""
        if call_id in self._entered_at:
            raise ValueError(f"call {call_id} is already being charged")
        self._advance()
        self._entered_at[call_id] = self._share_us

    def so_far(self, call_id: str) -> int:
        """Return the microseconds charged to the active `call_id` until now; raises KeyError."""
        self._advance()
        return self._share_us - self._entered_at[call_id]

    def leave(self, call_id: str) -> int:
        """Stop charging `call_id` and return its microseconds; raises KeyError when it is not active."""
        self._advance()
        return self._share_us - self._entered_at.pop(call_id)

    def _advance(self) -> None:
        # The clock's total is cut to microseconds, not each difference, so that nothing is lost on the way.
        now_us = self._clock_ns() // 1_000
        used = now_us - self._last_us
        self._last_us = now_us
        active = len(self._entered_at)
        if active == 0:
            self._idle_us += used
        elif active == 1:
            self._share_us += used + self._pending_us
            self._pending_us = 0
        else:
            share, self._pending_us = divmod(used + self._pending_us, active)
            self._share_us += share
