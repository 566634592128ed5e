"""`sovereign version`: what is installed here."""

from __future__ import annotations

import platform
from importlib import metadata

from cli.options import Json
from cli.output import OUTPUT


def version(as_json: Json = False) -> None:
    """Say which version this is."""
    parts = {name: metadata.version(name) for name in ("sovereign", "ray", "langchain", "langgraph", "pyarrow", "duckdb")}
    data = {**parts, "python": platform.python_version()}
    OUTPUT.result(
        data,
        lambda console: console.print("\n".join(f"{name} {number}" for name, number in data.items()), highlight=False),
    )
