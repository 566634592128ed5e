"""The one way to read a query: what is unknown, said twice or out of its bounds is refused by its name."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from cluster.errors import FieldError, InvalidRequestError

MAX_PAGE: Final = 1000
_MAX_VALUE: Final = 64


def read_query(request: Request, known: frozenset[str]) -> dict[str, str]:
    """Return the query's values; raises InvalidRequestError that names each that is unknown, said twice or not valid."""
    wrong: list[FieldError] = []
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            wrong.append(FieldError(name[:64], "is unknown"))
        elif name in found:
            wrong.append(FieldError(name, "is said twice"))
        elif len(value) > _MAX_VALUE or not value.isascii() or not value.isprintable():
            wrong.append(FieldError(name, f"must be at most {_MAX_VALUE} printable ASCII characters"))
        elif name == "limit" and not (value.isdigit() and len(value) <= 4 and 1 <= int(value) <= MAX_PAGE):
            wrong.append(FieldError(name, f"must be a number from 1 to {MAX_PAGE}"))
        found[name] = value
    if wrong:
        raise InvalidRequestError("The query can't be taken.", errors=wrong)
    return found
