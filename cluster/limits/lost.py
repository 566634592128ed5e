"""Reservations that were settled as lost. Their agents' final word may come after all, from a node that was away say: it holds.

What was said of one is said again to whoever asks again, so that what the final word adds is added once, by the limiter alone.

/limits/lost/<reservation>    kept for as long as the journals are that may say it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final, Self

import orjson

from cluster.coordination.coordination import Create, Delete, Op, Set
from cluster.errors import IntegrityError

FOLDER: Final = "/limits/lost"
# As long as a dead process' journal is kept.
KEEP_US: Final = 86_400_000_000
# The oldest are forgotten first.
MAX_LOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class Lost:
    """What a lost reservation was."""

    # tenant.agent that it was for.
    agent: str
    # When the call's time was up, in microseconds since 1970 UTC.
    until_us: int
    # What was reserved of each account, and what of it was settled when it was taken for lost.
    amounts: Mapping[str, int]
    used: Mapping[str, int]
    # Whether the final word has come, and the accounts hold it.
    final: bool = False

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        """Return what `to_bytes` wrote; raises IntegrityError."""
        try:
            return cls(**orjson.loads(value))
        except (TypeError, ValueError) as e:
            raise IntegrityError(f"A stored lost reservation can't be read: {e!r}.") from None

    def to_bytes(self) -> bytes:
        """Return the value of its node."""
        return orjson.dumps(asdict(self))


class LostReservations:
    """In the order in which they were lost. Each change is the operations that it returns; for one thread."""

    def __init__(self, stored: Iterable[tuple[str, bytes]]) -> None:
        """Take what is stored: names and values."""
        found = sorted(((name, Lost.from_bytes(value)) for name, value in stored), key=lambda x: x[1].until_us)
        self.of: dict[str, Lost] = dict(found)

    def keep(self, reservation: str, lost: Lost) -> list[Op]:
        """Take one more."""
        ops: list[Op] = [Create(_path(reservation), lost.to_bytes())]
        while len(self.of) >= MAX_LOST:
            ops += self.forget(next(iter(self.of)))
        self.of[reservation] = lost
        return ops

    def close(self, reservation: str) -> list[Op]:
        """Note that the final word of one has come."""
        self.of[reservation] = closed = replace(self.of[reservation], final=True)
        return [Set(_path(reservation), closed.to_bytes())]

    def forget(self, reservation: str) -> list[Op]:
        """Give one up."""
        del self.of[reservation]
        return [Delete(_path(reservation))]

    def expired(self, now_us: int) -> list[str]:
        """Return those of which nothing will be heard any more."""
        return [name for name, lost in self.of.items() if now_us > lost.until_us + KEEP_US]


def _path(reservation: str) -> str:
    return f"{FOLDER}/{reservation}"
