"""Which numbers of a sequence were used, over a window that slides with the highest."""

from __future__ import annotations


class ReplayWindow:
    """Which of the last `size` counters of one session were used: one int as a bitmap below the highest counter."""

    __slots__ = ("_bits", "_highest", "_mask", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._mask = (1 << size) - 1
        self._highest = 0
        # Bit i is set when counter `highest - i` was used; never more than `size` bits.
        self._bits = 0

    def take(self, counter: int) -> bool:
        """Use `counter`; returns False when it was used before or is too far behind to know."""
        ahead = counter - self._highest
        if ahead > 0:
            # A jump past the whole window must not become a shift by billions of bits.
            self._bits = (self._bits << ahead | 1) & self._mask if ahead < self._size else 1
            self._highest = counter
            return True
        behind = -ahead
        if counter <= 0 or behind >= self._size or self._bits >> behind & 1:
            return False
        self._bits |= 1 << behind
        return True
