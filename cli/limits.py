"""`sovereign limits`: what the caller's accounts have used and have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console


def limits(home: Home = None, as_json: Json = False) -> None:
    """Show what is used and left of the tenant's and its agents' budgets, as far as the gateway that answers has asked."""
    with ApiClient(settings_of(home)) as api:
        found = api.request("GET", "/api/v1/limits")
    OUTPUT.result(found, lambda console: _render(console, found["accounts"]))


def _render(console: Console, accounts: list[dict[str, Any]]) -> None:
    if not accounts:
        console.print("This gateway has not needed any budget yet.")
        return
    columns = ["account", "limit", "used", "left"]
    console.print(table(columns, [[a[c] for c in columns] for a in accounts], right=columns[1:]))
