"""Answers that are kept by the key that their client gave the call, so that a call sent again is not done again: the port."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Protocol

from cluster.errors import ConflictError, FieldError, InvalidRequestError
from cluster.identity.principal import Principal

MAX_KEY_CHARS = 255


class IdempotencyMismatchError(ConflictError):
    """The key was given to another call before."""

    code = "idempotency_mismatch"


class IdempotencyInProgressError(ConflictError):
    """The first call with the key is under way."""

    code = "idempotency_in_progress"


class IdempotencyOutcomeUnknownError(ConflictError):
    """The first call with the key may have done its work, and its answer is not there."""

    code = "idempotency_outcome_unknown"


class Progress(StrEnum):
    """How far the first call with a key has come."""

    BEGUN = "begun"
    ANSWERED = "answered"
    # It was answered, with more than is kept.
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class CallKey:
    """Whose call it is, and the key that they gave it."""

    tenant: str
    project: str
    key: str

    @classmethod
    def of(cls, principal: Principal, key: str) -> CallKey:
        """Return the key; raises InvalidRequestError for what is none."""
        if not (1 <= len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
            wrong = FieldError("idempotency-key", f"must be 1 to {MAX_KEY_CHARS} printable ASCII characters")
            raise InvalidRequestError("The Idempotency-Key is not valid.", errors=[wrong])
        return cls(str(principal.tenant), str(principal.project), key)


@dataclass(frozen=True, slots=True)
class Begun:
    """The first call with a key."""

    fingerprint: bytes
    # Which process does it, as the name of that process' journal.
    owner: str
    invocation_id: str
    began_us: int


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer, byte for byte, with those headers that belong to it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a key."""

    call: Begun
    progress: Progress
    # Only with ANSWERED.
    answer: KeptAnswer | None = None


def fingerprint(method: str, target: str, body: bytes) -> bytes:
    """Return what tells one call from another under the same key: SHA-256 over the method, the path with its query, the body."""
    return sha256(b"\0".join((method.encode(), target.encode(), body))).digest()


class AnswerStore(Protocol):
    """Blocks: for threads. What its methods wrote is on disk when they return.

    Fails closed: without it no call with a key is done. What began longer ago than answers are kept is not known any more.
    """

    def begin(self, key: CallKey, call: Begun) -> Known | None:
        """Keep `call` as the first with its key and return None, or return what is known of an earlier one.

        Raises OverloadedError when the tenant has as much kept as it may.
        """
        ...

    def answered(self, key: CallKey, invocation_id: str, answer: KeptAnswer) -> None:
        """Keep the answer of a call that began; one over the bound of size is only noted."""
        ...

    def forget(self, key: CallKey, invocation_id: str) -> None:
        """Forget a call that began, so that its key can be used again."""
        ...

    def prune(self, now_us: int) -> int:
        """Forget what began too long ago, and return how many."""
        ...

    def close(self) -> None:
        """Close the store."""
        ...
