"""`sovereign gangs`: register several agents all or none, show them, remove them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT
from cli.registration_file import read_registration

app = typer.Typer(help="Register, show and remove gangs of agents.", no_args_is_help=True, rich_markup_mode=None)

GangId = Annotated[str, typer.Argument(metavar="GANG", help="The gang's id.", show_default=False)]


@app.command()
def register(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON or YAML file of the request; `-` is stdin.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register all agents of the file's gang, or none; a refusal names every failed check of every member."""
    body = read_registration(file)
    with ApiClient(settings_of(home)) as api:
        answer = api.request("POST", "/api/v1/gangs", body=body)
    words = f"{answer['gang_id']} is {answer['status']}: {', '.join(answer['agents'])}"
    OUTPUT.result(answer, lambda console: console.print(words, markup=False, highlight=False))


@app.command()
def show(gang_id: GangId, home: Home = None, as_json: Json = False) -> None:
    """Show one gang: its members, and how they are placed."""
    with ApiClient(settings_of(home)) as api:
        gang = api.request("GET", f"/api/v1/gangs/{quote(gang_id, safe='')}")
    OUTPUT.result(gang, lambda console: console.print_json(data=gang))


@app.command()
def remove(gang_id: GangId, home: Home = None, as_json: Json = False) -> None:
    """Revoke all agents of a gang: calls are refused from now on, and their quota is free again."""
    with ApiClient(settings_of(home)) as api:
        answer = api.request("DELETE", f"/api/v1/gangs/{quote(gang_id, safe='')}")
    OUTPUT.result(answer, lambda console: console.print(f"{gang_id} is removed.", markup=False, highlight=False))
