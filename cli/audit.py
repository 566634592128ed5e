"""`sovereign audit`: what was decided, refused and changed, read from the Parquet of the lake, whether a cluster runs or not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cli.since import Since, parse_since

if TYPE_CHECKING:
    from rich.console import Console


def audit(
    action: Annotated[str | None, typer.Option(help="Only this action, such as admission:agent:decide.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only what concerns this tenant.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many of the newest rows.")] = 20,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what was decided, refused and changed, newest first."""
    from cluster.lake.query import audit_rows

    settings = settings_of(home)
    rows = audit_rows(settings, tenant_id=tenant, action=action, since=parse_since(since, datetime.now(UTC)), limit=limit)
    OUTPUT.result({"audit": rows}, lambda console: _render(console, rows))


def _render(console: Console, rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("Nothing is recorded here yet.")
        return
    columns = ["time", "action", "outcome", "tenant", "actor", "object", "reason"]
    names = ["action", "outcome", "tenant_id", "actor", "object_id", "reason"]
    drawn = [[f"{row['event_time']:%Y-%m-%d %H:%M:%S}", *(row[name] or "" for name in names)] for row in rows]
    console.print(table(columns, drawn))
