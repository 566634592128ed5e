"""How often something may be started again before whoever starts it must give up and say so."""

from __future__ import annotations

from collections import deque


class RestartBound:
    """Allows `limit` restarts within any `within_s`; what fails oftener will not be mended by one more."""

    def __init__(self, limit: int, within_s: float) -> None:
        self.limit = limit
        self.within_s = within_s
        self._times: deque[float] = deque()

    def allows(self, now_s: float) -> bool:
        """Count a restart at `now_s` (a monotonic clock) and return True, or return False when there were too many."""
        while self._times and self._times[0] <= now_s - self.within_s:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now_s)
        return True
