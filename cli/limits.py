"""`sovereign limits`: what the caller's accounts have used and have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console


def limits(home: Home = None, as_json: Json = False) -> None:
    """Show what is used and left of the tenant's budgets and rates, as far as the gateway that answers has asked."""
    with ApiClient(settings_of(home)) as api:
        found = api.request("GET", "/api/v1/limits")
    OUTPUT.result(found, lambda console: _render(console, found))


def _render(console: Console, found: dict[str, Any]) -> None:
    accounts = found["accounts"]
    if not accounts:
        console.print("This gateway has not needed any budget yet.")
        return
    columns = ["account", "limit", "used", "left"]
    console.print(table(columns, [[a[c] for c in columns] for a in accounts], right=columns[1:]))
    if rates := found["rates"]:
        columns = ["rate", "per_minute", "left"]
        console.print(table(columns, [[r[c] for c in columns] for r in rates], right=columns[1:]))
