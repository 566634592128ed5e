"""`sovereign tenants`: whose agents may exist here, for the cluster's operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli.allowance import Budget, Limit, Unbounded, body_of, required, text_of
from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

app = typer.Typer(
    help="List, make, change, suspend and resume tenants, and make their projects.", no_args_is_help=True, rich_markup_mode=None
)

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.", show_default=False)]
Plan = Annotated[str, typer.Option(help="A plan of the policy data, for example standard.", show_default=False)]


@app.command("list")
def list_tenants(
    after: Annotated[str | None, typer.Option(help="Start after this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the tenants, by name: those that the policy data declares, and those that were made."""
    with ApiClient(settings_of(home)) as api:
        page = api.request("GET", "/api/v1/tenants", params={"after": after, "limit": limit})
    OUTPUT.result(page, lambda console: _render(console, page))


@app.command()
def make(tenant: TenantId, plan: Plan, home: Home = None, as_json: Json = False) -> None:
    """Make a tenant of a plan; then make it a key with `sovereign keys make --tenant`."""
    with ApiClient(settings_of(home)) as api:
        made = api.request("POST", "/api/v1/tenants", body={"tenant_id": tenant, "plan": plan})
    _say(made)


@app.command()
def show(tenant: TenantId, home: Home = None, as_json: Json = False) -> None:
    """Show a tenant with its projects."""
    with ApiClient(settings_of(home)) as api:
        found = api.request("GET", _path(tenant))
    OUTPUT.result(found, lambda console: console.print_json(data=found))


@app.command()
def change(tenant: TenantId, plan: Plan, home: Home = None, as_json: Json = False) -> None:
    """Give a tenant another plan; what it has registered stays."""
    _change(home, tenant, {"plan": plan})


@app.command()
def suspend(tenant: TenantId, home: Home = None, as_json: Json = False) -> None:
    """Take no key of a tenant any more and wake none of its agents; nothing of it is lost."""
    _change(home, tenant, {"state": "suspended"})


@app.command()
def resume(tenant: TenantId, home: Home = None, as_json: Json = False) -> None:
    """Let a suspended tenant go on."""
    _change(home, tenant, {"state": "active"})


@app.command()
def projects(
    tenant: TenantId,
    make: Annotated[str | None, typer.Option(metavar="PROJECT", help="Make this project first.", show_default=False)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List a tenant's projects with what bounds them, or make one more."""
    with ApiClient(settings_of(home)) as api:
        if make is not None:
            api.request("POST", f"{_path(tenant)}/projects", body={"project_id": make})
        found = api.request("GET", f"{_path(tenant)}/projects")
    rows = [[project["project_id"], text_of(project)] for project in found["projects"]]
    OUTPUT.result(found, lambda console: console.print(table(["project", "bounds"], rows)))


@app.command("limit")
def bound(
    tenant: TenantId,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.", show_default=False)],
    budget: Budget = None,
    limit: Limit = None,
    none: Unbounded = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set what a project may spend (--budget) or how fast (--limit); it takes the place of all that was set of that."""
    body = required(body_of(budget, limit, none=none))
    with ApiClient(settings_of(home)) as api:
        changed = api.request("PATCH", f"{_path(tenant)}/projects/{quote(project, safe='')}", body=body)
    OUTPUT.result(changed, lambda console: console.print(f"{project}: {text_of(changed)}", markup=False, highlight=False))


def _change(home: Path | None, tenant: str, body: dict[str, Any]) -> None:
    with ApiClient(settings_of(home)) as api:
        changed = api.request("PATCH", _path(tenant), body=body)
    _say(changed)


def _path(tenant: str) -> str:
    return f"/api/v1/tenants/{quote(tenant, safe='')}"


def _say(tenant: dict[str, Any]) -> None:
    words = f"{tenant['tenant_id']} is {tenant['state']}, by plan {tenant['plan']}."
    OUTPUT.result(tenant, lambda console: console.print(words, markup=False, highlight=False))


def _render(console: Console, page: dict[str, Any]) -> None:
    columns = ["tenant", "state", "plan", "from", "made"]
    rows = [
        [t["tenant_id"], t["state"], t["plan"], t["source"], (t["created_at"] or "")[:19].replace("T", " ")]
        for t in page["tenants"]
    ]
    console.print(table(columns, rows))
    if page["next"]:
        console.print(f"More: sovereign tenants list --after {page['next']}", markup=False, highlight=False)
