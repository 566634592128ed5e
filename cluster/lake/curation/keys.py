"""Where plans, curated events and their like stand in the lake. A number has eight digits, so that keys sort as numbers do."""

from __future__ import annotations

import re
from typing import Final

PLAN_PREFIX: Final = "usage/plan/"
DONE_PREFIX: Final = "usage/done/"
EVENTS_PREFIX: Final = "usage/events/v1/"
# Rows that curation refused. What the shipper puts into quarantine stands beside it, under `ingest_date=`.
REFUSED_PREFIX: Final = "usage/quarantine/v1/p"

_NUMBERED = re.compile(r"usage/(?:plan|done)/(\d{8})\.json")
_EVENTS = re.compile(r"usage/events/v1/event_date=\d{4}-\d{2}-\d{2}/p(\d{8})-\d+\.parquet")
_REFUSED = re.compile(r"usage/quarantine/v1/p(\d{8})-1\.parquet")


def plan_key(number: int) -> str:
    """Return the key of a plan; the first is 1."""
    return f"{PLAN_PREFIX}{number:08d}.json"


def done_key(number: int) -> str:
    """Return the key of what says that a plan is carried out."""
    return f"{DONE_PREFIX}{number:08d}.json"


def events_prefix(event_date: str) -> str:
    """Return what the keys of a day's curated events begin with; the day is YYYY-MM-DD."""
    return f"{EVENTS_PREFIX}event_date={event_date}/"


def events_key(number: int, part: int, event_date: str) -> str:
    """Return the key of the `part`-th object, from 1, that a plan writes."""
    return f"{events_prefix(event_date)}p{number:08d}-{part}.parquet"


def refused_key(number: int) -> str:
    """Return the key of the rows that a plan puts into quarantine."""
    return f"{REFUSED_PREFIX}{number:08d}-1.parquet"


def plan_of(key: str) -> int | None:
    """Return the number of the plan that a key belongs to, or None when curation writes no such key."""
    for pattern in (_NUMBERED, _EVENTS, _REFUSED):
        if match := pattern.fullmatch(key):
            return int(match[1])
    return None
