"""Billing periods: half-open stretches of UTC, by whole seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.errors import FieldError, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Period:
    """From and with `begin` until and without `end`; both are aware, in UTC, and whole seconds."""

    begin: datetime
    end: datetime

    def __post_init__(self) -> None:
        for moment in (self.begin, self.end):
            if moment.utcoffset() != timedelta(0) or moment.microsecond:
                raise ValueError(f"{moment} is no whole second of UTC")
        if self.end < self.begin:
            raise ValueError(f"a period can't end at {self.end} before it begins at {self.begin}")

    @classmethod
    def month(cls, name: str) -> Period:
        """Return the calendar month of "2026-01"; raises InvalidRequestError."""
        if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", name) or name < "1970":
            raise InvalidRequestError("No such period.", errors=[FieldError("period", "must be a month such as 2026-01")])
        year, month = int(name[:4]), int(name[5:])
        after = (year + 1, 1) if month == 12 else (year, month + 1)
        return cls(datetime(year, month, 1, tzinfo=UTC), datetime(*after, 1, tzinfo=UTC))

    @property
    def seconds(self) -> int:
        """How long it is."""
        return int((self.end - self.begin).total_seconds())

    def __contains__(self, moment: datetime) -> bool:
        """Return whether the moment is in it; its end is not."""
        return self.begin <= moment < self.end

    def within(self, begin: datetime | None, end: datetime | None) -> Period:
        """Return the part of it between two moments, None for without a bound; it may be empty."""
        first = min(max(self.begin, begin or self.begin), self.end)
        return Period(first, max(first, min(self.end, end or self.end)))
