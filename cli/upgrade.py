"""`sovereign upgrade`: the running cluster goes on with the code that is installed now, and no call fails of it."""

from __future__ import annotations

import contextlib
import sys

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT


def upgrade(home: Home = None, as_json: Json = False) -> None:
    """Replace every part of the running cluster by the release that is installed now, one after the other, under load."""
    from actors.ray_connection import connect_to

    state = connect_to(settings_of(home))
    from serve_apps.upgrade import upgrade as replace_parts

    # Ray writes what its nodes have to say to standard output, which is for the answer alone.
    with contextlib.redirect_stdout(sys.stderr):
        replaced = replace_parts(state, OUTPUT.note)
    words = f"Gateways, shippers and governance are new, and {replaced} agents' processes were replaced."
    OUTPUT.result({"agents": replaced}, lambda console: console.print(words, markup=False, highlight=False))
