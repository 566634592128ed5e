"""Whether facts reach the lake, and since when they do not: one line in the log for each change, not for each try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ShippingCondition:
    """A pure state: told of each try, it says what is new."""

    # In microseconds since 1970 UTC; 0 while all is well.
    stuck_since_us: int = 0

    def failed(self, why: str, now_us: int) -> str:
        """Note that nothing was shipped; returns the line to log, or nothing when that was known."""
        if self.stuck_since_us:
            return ""
        self.stuck_since_us = now_us
        return f"nothing is shipped: {why} Facts wait in the journals, and it is tried again until it works."

    def worked(self, now_us: int) -> str:
        """Note that a try went through; returns the line to log, or nothing when all was well before."""
        if not self.stuck_since_us:
            return ""
        after_s = (now_us - self.stuck_since_us) / 1_000_000
        self.stuck_since_us = 0
        return f"facts are shipped again, after {after_s:,.0f} s"
