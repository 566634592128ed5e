"""How many calls a process takes on at once: as many as it may, and fewer when its own work on them makes everyone wait.

Calls that wait for a model cost their process nothing, hundreds of them. Calls that are answered at once cost it its one
thread, and whoever comes next waits behind all of them, in the event loop, where nobody has turns. So what is taken on goes
down by a part while the loop is late, and up by one otherwise (additive increase, multiplicative decrease; Chiu, Jain 1989):
what waits then waits in the queue, where each tenant has its turn.
"""

from __future__ import annotations

from typing import Final

# The loop is late when what is ready waits so long for its turn.
LATE_US: Final = 5_000
# Enough to keep the process and its agents busy.
FEWEST: Final = 8


class Pace:
    """The places of one process by the lateness of its loop."""

    def __init__(self, most: int) -> None:
        """Begin with `most`, which is never passed."""
        self._most = most
        self._fewest = min(FEWEST, most)
        self.places = most

    @property
    def is_full(self) -> bool:
        """Whether there are as many places as may be."""
        return self.places >= self._most

    def seen(self, late_us: int, *, running: int, tenants: int) -> int:
        """Take in how late the loop was with so many calls under way of so many tenants; return the places from now on.

        One tenant alone is slowed down by nobody else and may have them all.
        """
        if tenants > 1 and late_us > LATE_US:
            self.places = max(self._fewest, min(self.places, running) * 3 // 4)
        else:
            self.places = min(self._most, self.places + 1)
        return self.places
