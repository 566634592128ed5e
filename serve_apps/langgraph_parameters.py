"""Queries as LangGraph's SDK writes them: a parameter may be said several times, or be empty for a default."""

from __future__ import annotations

import re
from typing import Final, get_args

from starlette.requests import Request

from cluster.errors import FieldError
from serve_apps.langgraph import StreamMode, refused

FLAG: Final = "0|1|(?i:true|false)"
STATUSES: Final = "pending|running|error|success|timeout|interrupted"
# An empty one is what the SDK sends for None.
MODES: Final = "|".join((*get_args(StreamMode), ""))


def query_of(request: Request, **known: str) -> dict[str, list[str]]:
    """Return the values of each parameter; raises InvalidRequestError for one that is not known or does not match its pattern."""
    found: dict[str, list[str]] = {}
    wrong: list[FieldError] = []
    for name, value in request.query_params.multi_items():
        if name not in known:
            wrong.append(FieldError(name[:64], "is not supported here"))
        elif not re.fullmatch(known[name], value):
            wrong.append(FieldError(name, f"must match {known[name]}"))
        elif name in found and known[name] != MODES:
            wrong.append(FieldError(name, "is said twice"))
        found.setdefault(name, []).append(value)
    if wrong:
        raise refused(wrong)
    return found
