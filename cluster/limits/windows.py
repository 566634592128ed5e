"""The stretches of time that a budget is for: a day, a month, for ever. In UTC, from the first moment to before the last."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from cluster.clock import utc

# Further away than any clock will get: 9999-12-31 UTC.
NEVER_US = 253_402_214_400_000_000


class Window(StrEnum):
    """What a bound holds for."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    # What is under way at the same time; nothing of it is ever used up.
    NOW = "now"


def window_at(window: Window, now_us: int) -> tuple[str, int]:
    """Return the name of the window that holds at `now_us`, and the microsecond in which the next one begins."""
    if window in (Window.TOTAL, Window.NOW):
        return window.value, NEVER_US
    day = utc(now_us).replace(hour=0, minute=0, second=0, microsecond=0)
    if window is Window.DAY:
        return f"day-{day:%Y-%m-%d}", _us(day + timedelta(days=1))
    first = day.replace(day=1)
    following = first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)
    return f"month-{first:%Y-%m}", _us(following)


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
