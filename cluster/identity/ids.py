"""Identifiers: frozen strings with one grammar, which parse and print symmetrically."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cluster.errors import FieldError, InvalidRequestError

GRAMMAR = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_PATTERN = re.compile(GRAMMAR)


class Identifier(str):
    """A name of 1 to 63 of a-z, 0-9 and "-", not at either end ("-"): safe in a path, a URL, a key and a log line."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Return the identifier; raises ValueError when `text` is not of the grammar."""
        if not isinstance(text, str) or not _PATTERN.fullmatch(text):
            raise ValueError(f"must be 1 to 63 characters of a-z, 0-9 and '-', not at an end; got {str(text)[:80]!r}")
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the identifier; raises InvalidRequestError that names `field`."""
        try:
            return cls(text)
        except ValueError as e:
            raise InvalidRequestError(f"{field} is not a valid name.", errors=[FieldError(field, str(e))]) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(strict=True, min_length=1, max_length=63, pattern=f"^{GRAMMAR}$")
        )


class TenantId(Identifier):
    """A customer or team whose quota, budget and data stand apart."""

    __slots__ = ()


class ProjectId(Identifier):
    """A part of a tenant that usage is told apart by."""

    __slots__ = ()


class AgentId(Identifier):
    """An agent's name, unique within its tenant."""

    __slots__ = ()


class _Uuid7:
    """A monotonic source of UUIDv7 (RFC 9562, section 5.7; method 3: sub-millisecond clock in rand_a)."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> uuid.UUID:
        ns = time.time_ns()
        with self._lock:
            ms, rest = divmod(ns, 1_000_000)
            stamp = ms << 12 | (rest << 12) // 1_000_000
            stamp = self._last = max(stamp, self._last + 1)
        random = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1
        return uuid.UUID(int=(stamp >> 12) << 80 | 7 << 76 | (stamp & 0xFFF) << 64 | 2 << 62 | random)


_source = _Uuid7()
os.register_at_fork(after_in_child=_source.__init__)  # type: ignore[misc]  # a fork must not share the lock


def uuid7() -> str:
    """Return a new UUIDv7 in its 36-character form; later ones of this process sort after earlier ones."""
    return str(_source.next())


def uuid7_time_us(text: str) -> int:
    """Return the time in a UUIDv7, in microseconds since 1970 UTC with millisecond steps; raises ValueError."""
    value = uuid.UUID(text)
    if value.version != 7:
        raise ValueError(f"{text!r} is not a UUIDv7")
    return (value.int >> 80) * 1_000
