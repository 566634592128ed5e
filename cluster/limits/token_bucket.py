"""A token bucket: so many a minute, and as many at once as a minute brings. Empty at first, so a restart gives nothing away."""

from __future__ import annotations

_MINUTE_US = 60_000_000


class TokenBucket:
    """Counts in whole tokens; whoever uses it says what time it is, in microseconds that only go forward."""

    def __init__(self, per_minute: int, now_us: int) -> None:
        self.per_minute = per_minute
        self.level = 0
        # Up to when what time brought is in `level`; the rest of a token stays in the difference.
        self._filled_us = now_us

    def change_rate(self, per_minute: int, now_us: int) -> None:
        """Go on with another rate; what is above a minute of it is lost."""
        self._fill(now_us)
        self.per_minute = per_minute
        self.level = min(self.level, per_minute)

    def take(self, least: int, most: int, now_us: int) -> int:
        """Take up to `most` tokens and return how many; 0 when there are fewer than `least`."""
        self._fill(now_us)
        taken = min(most, self.level)
        if taken < least:
            return 0
        self.level -= taken
        return taken

    def wait_us(self, tokens: int, now_us: int) -> int:
        """Return how long until there are so many, if nobody takes any; more than a minute's count as a minute's."""
        self._fill(now_us)
        missing = min(tokens, self.per_minute) - self.level
        if missing <= 0:
            return 0
        return -(-missing * _MINUTE_US // self.per_minute) - (now_us - self._filled_us) if self.per_minute else _MINUTE_US

    def _fill(self, now_us: int) -> None:
        came = (now_us - self._filled_us) * self.per_minute // _MINUTE_US
        if came <= 0:
            return
        if self.level + came >= self.per_minute:
            self.level, self._filled_us = self.per_minute, now_us
        else:
            self.level += came
            # Rounded up, so that no part of a token counts twice.
            self._filled_us += -(-came * _MINUTE_US // self.per_minute)
