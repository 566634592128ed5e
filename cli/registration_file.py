"""Reads a registration that a person wrote as JSON or YAML, with the file and the place in every complaint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cluster.errors import InvalidRequestError, NotFoundError

MAX_BYTES = 1 << 20


def read_registration(path: Path) -> dict[str, Any]:
    """Return the request in `path` (`-` is stdin); raises NotFoundError or InvalidRequestError that says where."""
    name = "stdin" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if name == "stdin" else _read(path)
        text = raw.decode("utf-8-sig")
    except OSError as e:
        raise NotFoundError(f"{name} can't be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise InvalidRequestError(f"{name} is not UTF-8 (byte {e.start}).") from None
    if len(raw) > MAX_BYTES:
        raise InvalidRequestError(f"{name} is larger than {MAX_BYTES} bytes, so it is no registration.")
    as_json = path.suffix == ".json" or text.lstrip()[:1] == "{"
    document = _parse_json(text, name) if as_json else _parse_yaml(text, name)
    if not isinstance(document, dict):
        raise InvalidRequestError(f"{name} holds {type(document).__name__}, not an object with agent_id and capabilities.")
    return document


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, name))
    except ValueError as e:
        raise InvalidRequestError(f"{name} is not JSON: {e}.") from None
    except RecursionError:
        raise InvalidRequestError(f"{name} is nested too deep.") from None


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise InvalidRequestError(f"{name} names {key!r} twice.")
        seen[key] = value
    return seen


def _parse_yaml(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise InvalidRequestError(f"{name} is not YAML: {e}") from None
    except RecursionError:
        raise InvalidRequestError(f"{name} is nested too deep.") from None
