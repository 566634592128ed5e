"""`--since` takes a span or a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cli.since import parse_since
from cluster.errors import InvalidRequestError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("12h", NOW - timedelta(hours=12)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T02:00:00+02:00", datetime(2026, 1, 31, tzinfo=UTC)),
        ("999999999d", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_span_or_a_moment(text: str, wanted: datetime) -> None:
    """A moment without a zone is UTC, as everything in the lake is; a span longer than time begins with time."""
    assert parse_since(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "1w", "yesterday", "-1h", "1.5h", "٣h", "1h\n"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    """The sentence names the option and shows both forms."""
    with pytest.raises(InvalidRequestError) as refused:
        parse_since(text, NOW)
    assert refused.value.errors[0].field == "--since"
