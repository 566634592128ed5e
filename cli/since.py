"""`--since`: a span before now, or a moment."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cluster.errors import FieldError, InvalidRequestError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
Since = Annotated[str | None, typer.Option(help="Only what happened from then on: 30m, 12h, 7d, or 2026-01-31[T12:00:00Z].")]


def parse_since(text: str | None, now: datetime) -> datetime | None:
    """Return the moment that `text` names: a span before `now`, or an ISO 8601 date or time (UTC unless it says).

    None stays None. Raises InvalidRequestError for anything else.
    """
    if text is None:
        return None
    if span := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        try:
            return now - timedelta(**{UNITS[span[2]]: int(span[1])})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fields = [FieldError("--since", f"{text!r} is no span like 30m, 12h or 7d, and no date like 2026-01-31")]
        raise InvalidRequestError("The time to begin at can't be read.", errors=fields) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
