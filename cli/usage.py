"""`sovereign usage`: what calls used, read from the Parquet of the lake, whether a cluster runs or not."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cluster.errors import FieldError, InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def usage(
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls from then on: 30m, 12h, 7d, or 2026-01-31[T12:00:00Z].")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many of the newest rows.")] = 20,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what calls used, newest first."""
    from cluster.lake.query import usage_rows

    begin = parse_since(since, datetime.now(UTC)) if since is not None else None
    rows = usage_rows(settings_of(home), agent_id=agent, since=begin, limit=limit)
    OUTPUT.result({"usage": rows}, lambda console: _render(console, rows))


def parse_since(text: str, now: datetime) -> datetime:
    """Return the moment that `text` names: a span before `now`, or an ISO 8601 date or time (UTC unless it says)."""
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


def _render(console: Console, rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("No usage is recorded here yet.")
        return
    columns = ["time", "agent", "outcome", "model", "tokens in", "tokens out", "cpu ms", "latency ms"]
    drawn = [
        [
            f"{row['event_time']:%Y-%m-%d %H:%M:%S}",
            row["agent_id"],
            row["outcome"],
            row["model"],
            row["tokens_input_uncached"] + row["tokens_cache_read"] + row["tokens_cache_write"],
            row["tokens_output"] + row["tokens_reasoning"],
            f"{row['cpu_us'] / 1000:.1f}",
            f"{row['latency_us'] / 1000:.1f}",
        ]
        for row in rows
    ]
    console.print(table(columns, drawn, right=columns[4:]))
