"""A set of whole numbers that come nearly in a row: a writer's segments, millions of them, in a few pairs."""

from __future__ import annotations

from bisect import bisect_right


class Ranges:
    """Disjoint ranges, in order, none of which touches another."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        # Past the last number of each.
        self._ends: list[int] = []

    def add(self, number: int) -> None:
        """Take a number in; one that is in already changes nothing."""
        if number in self:
            return
        at = bisect_right(self._starts, number)
        joins_left = at > 0 and self._ends[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            self._starts.pop(at)
        elif joins_left:
            self._ends[at - 1] = number + 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._starts)
