"""JSON from outside: one meaning or none. What two parsers could read in two ways is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from cluster.errors import FieldError, InvalidRequestError, PayloadTooLargeError

MAX_DEPTH: Final = 32
# 18 digits and a sign always fit a signed 64-bit integer.
_MAX_INTEGER_CHARS: Final = 18
# A string, or what is left of the text when it does not end: so that the search is linear whatever the text is.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_ONE_KIND_OF_BRACKET = str.maketrans("{}", "[]")
_NOT_BRACKETS = re.compile(r"[^\[\]]+")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_strict_json(data: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of `data`: UTF-8 JSON of at most `max_bytes` bytes and `max_depth` levels of nesting.

    Raises PayloadTooLargeError for more bytes; InvalidRequestError, which says what and where, for what is not JSON and
    for what is but has no one meaning: a key twice, a lone surrogate, NaN, an integer of more than 18 digits, a number
    that is infinite as a float, a byte order mark. The process lives whatever the bytes are.
    """
    if len(data) > max_bytes:
        raise PayloadTooLargeError(f"The body has {len(data)} bytes; the most is {max_bytes}.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise _refused(f"is not UTF-8 at byte {e.start}") from None
    if text.startswith("\ufeff"):
        raise _refused("begins with a byte order mark; send plain UTF-8")
    # The parser recurses, so depth is bounded before it runs. Few brackets can't be deep: the usual case ends here.
    if text.count("[") + text.count("{") > max_depth and _is_deeper(text, max_depth):
        raise _refused(f"is nested more than {max_depth} levels deep")
    try:
        value = _DECODER.decode(text)
    except _AmbiguousError as e:
        raise _refused(str(e)) from None
    except json.JSONDecodeError as e:
        raise _refused(f"is not JSON at line {e.lineno}, column {e.colno}: {e.msg}") from None
    except (ValueError, RecursionError) as e:
        raise _refused(f"is not JSON: {e}") from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(value)
    return value


class _AmbiguousError(ValueError):
    """JSON by the grammar, but without one meaning."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _AmbiguousError(f"has the key {_first_repeated(pairs)[:80]!a} twice in one object")
    return value


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("asked only when a key is repeated")


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_CHARS + digits.startswith("-"):
        raise _AmbiguousError(f"has an integer of more than {_MAX_INTEGER_CHARS} digits")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _AmbiguousError("has a number that is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _AmbiguousError(f"has {name}, which is not a JSON number")


# One decoder for all: building one costs more than parsing a usual body with it, and it keeps nothing between calls.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_int=_bounded_integer, parse_float=_finite_float, parse_constant=_no_constant
)


def _is_deeper(text: str, max_depth: int) -> bool:
    """Peel one level of nesting a pass; what remains after `max_depth` passes is deeper, or no JSON at all."""
    brackets = _NOT_BRACKETS.sub("", _STRING.sub("", text).translate(_ONE_KIND_OF_BRACKET))
    for _ in range(max_depth):
        if not brackets:
            return False
        brackets = brackets.replace("[]", "")
    # Brackets that don't pair are left for the parser to name, unless there are enough of them to be deep.
    return brackets.count("[") > max_depth or "[]" in brackets


def _refuse_lone_surrogates(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _refused("has half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_lone_surrogates(key)
            _refuse_lone_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_lone_surrogates(item)


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError("The body can't be taken.", errors=[FieldError("body", why)])
