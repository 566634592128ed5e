"""`sovereign token`: an access token for an API key, on stdout and nowhere else; end one early; sign with a new key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT
from cluster.errors import InvalidRequestError, NotFoundError, UnauthenticatedError
from cluster.identity.roles import ROLE_SCOPES, Role

if TYPE_CHECKING:
    from cluster.settings import Settings

app = typer.Typer(
    help="Print an access token for an API key, for at most 15 minutes; revoke one; rotate the key that signs them.",
    rich_markup_mode=None,
)

KeyFile = Annotated[
    Path | None, typer.Option(help="File with the API key to use [default: the home's first key].", show_default=False)
]


@app.callback(invoke_without_command=True)
def token(
    context: typer.Context,
    scope: Annotated[
        list[str] | None, typer.Option(help="Only this scope of the key's (may be given more than once).", show_default=False)
    ] = None,
    role: Annotated[Role | None, typer.Option(help="Only the scopes of this role.", show_default=False)] = None,
    life_s: Annotated[
        int | None, typer.Option("--life-s", min=1, max=900, help="Its life in seconds [default: what the cluster gives].")
    ] = None,
    key_file: KeyFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print an access token for an API key: the token alone, or with --json all of the answer."""
    if context.invoked_subcommand is not None:
        return
    form = {"grant_type": "client_credentials"}
    if scope or role:
        form["scope"] = " ".join(sorted({*(scope or ()), *(ROLE_SCOPES[role] if role else ())}))
    if life_s is not None:
        form["expires_in"] = str(life_s)
    settings = settings_of(home)
    with ApiClient(settings, key=_key_in(key_file)) as client:
        answer = client.request("POST", "/oauth/token", form=form)
    # Not through the console, which breaks long lines.
    OUTPUT.result(answer, lambda _: print(answer["access_token"]))


@app.command()
def revoke(key_file: KeyFile = None, home: Home = None, as_json: Json = False) -> None:
    """End an access token early. It is read from stdin: what stands in a command line is seen by everybody."""
    text = sys.stdin.read(64 << 10).strip()
    if not text:
        raise InvalidRequestError("There is no token on stdin.", hint="sovereign token revoke < FILE")
    with ApiClient(settings_of(home), key=_key_in(key_file)) as client:
        client.request("POST", "/oauth/revoke", form={"token": text})
    OUTPUT.result({"status": "revoked"}, lambda _: OUTPUT.note("it is refused everywhere within 2 s"))


@app.command("rotate-key")
def rotate_key(home: Home = None, as_json: Json = False) -> None:
    """Sign new access tokens with a new key. Those that there are go on to their end; every gateway knows it at once."""
    key_id = _rotate(settings_of(home))
    OUTPUT.result({"kid": key_id}, lambda console: console.print(f"New tokens are signed with key {key_id}.", highlight=False))


def _rotate(settings: Settings) -> str:
    from cluster import wiring

    if not settings.secret_dir.is_dir():
        raise NotFoundError(f"There is no cluster's home at {settings.home}.", hint="Name it with --home or SOVEREIGN_HOME.")
    keys = wiring.signing_keys(settings)
    wiring.record_rotation(settings)
    return keys.rotate()


def _key_in(key_file: Path | None) -> str:
    if key_file is None:
        return ""
    try:
        return key_file.read_text().strip()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UnauthenticatedError(f"The API key in {key_file} can't be read: {reason}.") from None
