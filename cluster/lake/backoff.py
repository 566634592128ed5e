"""When to try again what failed: soon, then less often, never at the same moment as all the others, and always again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.25
# A store that comes back after an hour is found within so many seconds.
LONGEST_S: Final = 5.0
# The longest wait that a store may ask for.
LONGEST_ASKED_S: Final = 60.0


class Backoff:
    """Waits of between half and all of a bound, which doubles with each failure in a row."""

    def __init__(
        self, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S, jitter: Callable[[], float] = random.random
    ) -> None:
        """Begin at `first_s`, never wait longer than `longest_s`; `jitter` returns numbers from 0 to 1."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._bound_s = 0.0

    def failed(self, asked_s: float = 0.0) -> float:
        """Return the seconds to wait after one more failure, or what the other side asked for if that is longer."""
        self._bound_s = min(self._bound_s * 2 or self._first_s, self._longest_s)
        return max(self._bound_s * (1 + self._jitter()) / 2, min(asked_s, LONGEST_ASKED_S))

    def succeeded(self) -> None:
        """Begin anew with the next failure."""
        self._bound_s = 0.0
