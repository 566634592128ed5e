"""The options that every command takes, and the settings that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import OUTPUT

if TYPE_CHECKING:
    from cluster.settings import Settings


def _choose_json(chosen: bool) -> bool:
    OUTPUT.as_json = chosen
    return chosen


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", callback=_choose_json, is_eager=True)]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the cluster's state [default: SOVEREIGN_HOME or .sovereign].", show_default=False),
]


def settings_of(home: Path | None, **overrides: object) -> Settings:
    """Return the settings from the environment with what was given on the command line on top."""
    from cluster.settings import Settings

    given = {"home": home, **overrides}
    return Settings.load(**{name: value for name, value in given.items() if value is not None})
