"""The port: nodes with a version, changed together or not at all. Its shape is ZooKeeper's, so that ZooKeeper fits behind it.

A path is "/" and names joined by "/". Folders come into being with the first node below them, hold no value, and stay.
A backend that can't tell whether it wrote fails closed: it raises UnavailableError, and the caller looks before it repeats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cluster.errors import ConflictError, FieldError, InvalidRequestError, PayloadTooLargeError

# ZooKeeper's own default bound on a whole request is 1 MiB.
MAX_VALUE_BYTES: Final = 512 << 10
MAX_OPS: Final = 128
# The version that `Check` takes for "there is no such node".
ABSENT: Final = -1
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}"
_PATH = re.compile(rf"(?:/{_NAME}){{1,16}}")


@dataclass(frozen=True, slots=True)
class Node:
    """A value of at most 512 KiB. `version` is 0 when created and grows by 1 with each change."""

    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Create:
    """Make a node; conflicts when it exists or is a folder."""

    path: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Set:
    """Change a node; conflicts when it is absent, or `version` is given and is not the node's."""

    path: str
    value: bytes
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a node; conflicts as `Set` does."""

    path: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Change nothing, and conflict when the node has another version; ABSENT: when it exists."""

    path: str
    version: int


Op = Create | Set | Delete | Check


class CoordinationConflictError(ConflictError):
    """One operation of a transaction did not hold, so none was done; `failed` is its index and `path` its node."""

    code = "coordination_conflict"
    retryable = True

    @classmethod
    def of(cls, index: int, op: Op, why: str) -> CoordinationConflictError:
        """Return the error of the operation number `index` (from 0) of a transaction."""
        name = type(op).__name__.lower()
        return cls(
            f"Nothing was changed: {name} {op.path} {why}.",
            hint="Read the nodes again and decide anew.",
            errors=[FieldError(f"{index}.{op.path}", why)],
        )

    @property
    def failed(self) -> int:
        """The index of the operation that did not hold, from 0."""
        return int(self.errors[0].field.partition(".")[0])

    @property
    def path(self) -> str:
        """The node of the operation that did not hold."""
        return self.errors[0].field.partition(".")[2]


class Coordination(Protocol):
    """A small shared store with transactions; safe to use from many threads and many processes."""

    def get(self, path: str) -> Node | None:
        """Return the node, or None when there is none (or only a folder)."""
        ...

    def children(self, path: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` names below `path`, in order of their bytes, from the first one greater than `after` on.

        The cost depends on `limit` and not on how many there are.
        """
        ...

    def transact(self, ops: Sequence[Op]) -> None:
        """Do all of 1 to 128 operations, in order and on disk, or none.

        Raises CoordinationConflictError that names the first operation that did not hold, UnavailableError when the
        store does not answer in time (it may or may not have been done then).
        """
        ...

    def close(self) -> None:
        """Let go of the store; closing twice does nothing."""
        ...


def check_path(path: str) -> str:
    """Return `path`; raises InvalidRequestError when it is not of the grammar."""
    if not _PATH.fullmatch(path):
        raise InvalidRequestError(
            f"{path[:120]!r} is no path of a node.", hint="A path is 1 to 16 names of A-Z a-z 0-9 . _ -, each after a slash."
        )
    return path


def check_ops(ops: Sequence[Op]) -> None:
    """Raise InvalidRequestError or PayloadTooLargeError for a transaction that no backend may take."""
    if not 1 <= len(ops) <= MAX_OPS:
        raise InvalidRequestError(f"A transaction has 1 to {MAX_OPS} operations; this one has {len(ops)}.")
    for op in ops:
        check_path(op.path)
        if isinstance(op, Create | Set) and len(op.value) > MAX_VALUE_BYTES:
            raise PayloadTooLargeError(f"{op.path} would have {len(op.value)} bytes; the most is {MAX_VALUE_BYTES}.")
