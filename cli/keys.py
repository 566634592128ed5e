"""`sovereign keys`: the API keys of a tenant. A secret is printed once, by what makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli.allowance import Budget, Limit, Unbounded, body_of, required, text_of
from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="List, make, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

KeyId = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id: its text between sk-sov- and the secret.", show_default=False)
]
Tenant = Annotated[str | None, typer.Option(help="Whose keys, for operators [default: one's own].", show_default=False)]
DAY_S = 86_400


@app.command("list")
def list_keys(
    tenant: Tenant = None,
    after: Annotated[str | None, typer.Option(help="Start after this key id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the keys, by id, without their secrets."""
    with ApiClient(settings_of(home)) as api:
        page = api.request("GET", "/api/v1/keys", params={"tenant_id": tenant, "after": after, "limit": limit})
    OUTPUT.result(page, lambda console: _render(console, page))


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="What people call the key.", show_default=False)],
    role: Annotated[
        str | None,
        typer.Option(help="operator, admin, developer, caller, analyst or auditor [default: caller].", show_default=False),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope instead of a role (may be given more than once).", show_default=False)
    ] = None,
    project: Annotated[str | None, typer.Option(help="The project that it works in.", show_default=False)] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, help="Its life in days [default: without end].", show_default=False)
    ] = None,
    budget: Budget = None,
    limit: Limit = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    body = {
        "name": name,
        "role": role or (None if scope else "caller"),
        "scopes": scope or None,
        "tenant_id": tenant,
        "project_id": project,
        "expires_in_s": expires_days and expires_days * DAY_S,
    } | body_of(budget, limit)
    with ApiClient(settings_of(home)) as api:
        made = api.request("POST", "/api/v1/keys", body={k: v for k, v in body.items() if v is not None})
    OUTPUT.note("The key is kept nowhere: store it now.")
    OUTPUT.result(made, lambda console: console.print(made["key"], markup=False, highlight=False, soft_wrap=True))


@app.command("limit")
def bound(
    key_id: KeyId,
    budget: Budget = None,
    limit: Limit = None,
    none: Unbounded = False,
    tenant: Tenant = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set what a key may spend (--budget) or how fast (--limit); it takes the place of all that was set of that."""
    body = required(body_of(budget, limit, none=none))
    with ApiClient(settings_of(home)) as api:
        changed = api.request("PATCH", _path(key_id), body=body, params={"tenant_id": tenant})
    OUTPUT.result(changed, lambda console: console.print(f"{key_id}: {text_of(changed)}", markup=False, highlight=False))


@app.command()
def rotate(
    key_id: KeyId,
    overlap_s: Annotated[
        int, typer.Option(min=0, help="For how many seconds the secret of now is taken beside the new one.")
    ] = DAY_S,
    tenant: Tenant = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give a key a new secret and print it, this once."""
    with ApiClient(settings_of(home)) as api:
        changed = api.request("POST", f"{_path(key_id)}/rotate", body={"overlap_s": overlap_s}, params={"tenant_id": tenant})
    OUTPUT.note(f"The key is kept nowhere: store it now. The secret before it is taken for {overlap_s} s more.")
    OUTPUT.result(changed, lambda console: console.print(changed["key"], markup=False, highlight=False, soft_wrap=True))


@app.command()
def revoke(key_id: KeyId, tenant: Tenant = None, home: Home = None, as_json: Json = False) -> None:
    """End a key: no gateway takes it after 2 seconds."""
    with ApiClient(settings_of(home)) as api:
        ended = api.request("DELETE", _path(key_id), params={"tenant_id": tenant})
    OUTPUT.result(ended, lambda console: console.print(f"{key_id} is revoked.", markup=False, highlight=False))


def _path(key_id: str) -> str:
    return f"/api/v1/keys/{quote(key_id, safe='')}"


def _render(console: Console, page: dict[str, Any]) -> None:
    if not page["keys"]:
        console.print("There is no key.")
        return
    columns = ["key", "ends in", "name", "role", "project", "state", "made", "expires", "bounds"]
    rows = [
        [
            key["key_id"],
            key["last4"],
            key["name"],
            key["role"] or f"{len(key['scopes'])} scopes",
            key["project"],
            key["state"],
            key["created_at"][:10],
            (key["expires_at"] or "never")[:10],
            text_of(key),
        ]
        for key in page["keys"]
    ]
    console.print(table(columns, rows))
    if page["next"]:
        console.print(f"More: sovereign keys list --after {page['next']}", markup=False, highlight=False)
