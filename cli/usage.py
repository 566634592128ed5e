"""`sovereign usage`: what calls used, read from the Parquet of the lake, whether a cluster runs or not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cli.since import Since, parse_since

if TYPE_CHECKING:
    from rich.console import Console


def usage(
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only calls of this tenant; names of agents are each tenant's own.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many of the newest rows.")] = 20,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what calls used, newest first."""
    from cluster.lake.query import usage_rows

    begin = parse_since(since, datetime.now(UTC))
    rows = usage_rows(settings_of(home), tenant_id=tenant, agent_id=agent, since=begin, limit=limit)
    OUTPUT.result({"usage": rows}, lambda console: _render(console, rows))


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
