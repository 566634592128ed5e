"""What a call or a job used, as one row: quantities only, no money and no floats. All times are microseconds since 1970 UTC."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from cluster.errors import FieldError, IntegrityError

SCHEMA_VERSION: Final = 1
INT64_MAX: Final = (1 << 63) - 1
INT32_MAX: Final = (1 << 31) - 1


class UsageKind(StrEnum):
    """What a usage event says about its call."""

    # The call ended and this is all it used; there is exactly one for each acknowledged call.
    FINAL = "final"
    # A long call used this much since the interim event before.
    INTERIM = "interim"
    # The process ended before it wrote a final event; a final one with the same reservation_id supersedes it.
    LOST = "lost"
    VOID = "void"
    CORRECTION = "correction"


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    # A limit of its own policy stopped it: iterations, memory, output.
    LIMIT = "limit"
    # The agent's process ended first; never billable.
    LOST = "lost"


@dataclass(slots=True)
class UsageEvent:
    """One usage event; its fields are the columns of the lake, in their order.

    `ingest_time` and the three `writer_*` fields are set when the event is sealed and stay None until then.
    """

    event_id: str
    kind: UsageKind
    event_time: int
    start_time: int
    tenant_id: str
    project_id: str
    agent_id: str
    agent_version: str
    invocation_id: str
    reservation_id: str
    model: str
    outcome: Outcome
    billable: bool
    parent_invocation_id: str | None = None
    trace_id: str | None = None
    # Token classes are disjoint: their sum is what the provider counted.
    tokens_input_uncached: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    tokens_output: int = 0
    tokens_reasoning: int = 0
    tool_calls: int = 0
    # CPU time measured, in microseconds.
    cpu_us: int = 0
    # CPU reserved, milli-CPU × milliseconds; memory reserved, MiB × milliseconds.
    reserved_cpu_milli_ms: int = 0
    mem_mib_ms: int = 0
    latency_us: int = 0
    queue_us: int = 0
    # The provider's own usage objects, as JSON text.
    provider_usage_raw: str | None = None
    schema_version: int = SCHEMA_VERSION
    ingest_time: int | None = None
    writer_id: str | None = None
    writer_epoch: int | None = None
    writer_seq: int | None = None

    def to_body(self) -> dict[str, Any]:
        """Return the body of a fact on Stream.USAGE."""
        # Spelled out because it runs once a call: this is three times as fast as walking over the fields.
        return {
            "event_id": self.event_id,
            "kind": self.kind,
            "event_time": self.event_time,
            "start_time": self.start_time,
            "tenant_id": self.tenant_id,
            "project_id": self.project_id,
            "agent_id": self.agent_id,
            "agent_version": self.agent_version,
            "invocation_id": self.invocation_id,
            "reservation_id": self.reservation_id,
            "model": self.model,
            "outcome": self.outcome,
            "billable": self.billable,
            "parent_invocation_id": self.parent_invocation_id,
            "trace_id": self.trace_id,
            "tokens_input_uncached": self.tokens_input_uncached,
            "tokens_cache_read": self.tokens_cache_read,
            "tokens_cache_write": self.tokens_cache_write,
            "tokens_output": self.tokens_output,
            "tokens_reasoning": self.tokens_reasoning,
            "tool_calls": self.tool_calls,
            "cpu_us": self.cpu_us,
            "reserved_cpu_milli_ms": self.reserved_cpu_milli_ms,
            "mem_mib_ms": self.mem_mib_ms,
            "latency_us": self.latency_us,
            "queue_us": self.queue_us,
            "provider_usage_raw": self.provider_usage_raw,
            "schema_version": self.schema_version,
        }

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> UsageEvent:
        """Return the event of a fact's body; raises IntegrityError that names every field that is wrong."""
        event: UsageEvent = checked(cls, body, _USAGE_CHECKS)
        return event


@dataclass(slots=True)
class CallAdmitted:
    """A call that an agent's process took on: all that its `lost` event needs, should the process end first."""

    # What the call's final event will carry.
    event_id: str
    start_time: int
    tenant_id: str
    project_id: str
    agent_id: str
    agent_version: str
    invocation_id: str
    reservation_id: str
    model: str
    parent_invocation_id: str | None = None
    trace_id: str | None = None
    schema_version: int = SCHEMA_VERSION

    def to_body(self) -> dict[str, Any]:
        """Return the body of a fact on Stream.CALL."""
        return {
            "event_id": self.event_id,
            "start_time": self.start_time,
            "tenant_id": self.tenant_id,
            "project_id": self.project_id,
            "agent_id": self.agent_id,
            "agent_version": self.agent_version,
            "invocation_id": self.invocation_id,
            "reservation_id": self.reservation_id,
            "model": self.model,
            "parent_invocation_id": self.parent_invocation_id,
            "trace_id": self.trace_id,
            "schema_version": self.schema_version,
        }

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> CallAdmitted:
        """Return what a fact's body says; raises IntegrityError that names every field that is wrong."""
        admitted: CallAdmitted = checked(cls, body, _CALL_CHECKS)
        return admitted


def lost_event_id(event_id: str) -> str:
    """Return the id of the `lost` event for a call whose final event would have been `event_id` (a UUIDv7).

    The same for everyone who derives it, so that a loss found twice is one row; the time bits are kept, so that it is
    looked for in the same partition. Raises ValueError when `event_id` is no UUIDv7.
    """
    value = uuid.UUID(event_id)
    if value.version != 7:
        raise ValueError(f"{event_id!r} is not a UUIDv7")
    digest = int.from_bytes(hashlib.sha256(b"sovereign-lost\n" + value.bytes).digest()[:16], "big")
    rand_a, rand_b = digest >> 64 & 0xFFF, digest & (1 << 62) - 1
    return str(uuid.UUID(int=value.int >> 80 << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b))


def lost_event(admitted: CallAdmitted) -> UsageEvent:
    """Return the `lost` event of a call that was admitted and never finished.

    Its time is the call's start, the last moment that is known of it; it is not billable. Raises ValueError when the
    admitted `event_id` is no UUIDv7.
    """
    return UsageEvent(
        event_id=lost_event_id(admitted.event_id),
        kind=UsageKind.LOST,
        event_time=admitted.start_time,
        start_time=admitted.start_time,
        tenant_id=admitted.tenant_id,
        project_id=admitted.project_id,
        agent_id=admitted.agent_id,
        agent_version=admitted.agent_version,
        invocation_id=admitted.invocation_id,
        reservation_id=admitted.reservation_id,
        model=admitted.model,
        outcome=Outcome.LOST,
        billable=False,
        parent_invocation_id=admitted.parent_invocation_id,
        trace_id=admitted.trace_id,
    )


# Name → (type, smallest, largest) of each field; None is allowed where the default is None.
Check = tuple[type, int, int]
_TEXT: Final[Check] = (str, 0, 0)
_COUNT: Final[Check] = (int, 0, INT64_MAX)


def _checks(cls: type) -> dict[str, Check]:
    table: dict[str, Check] = {}
    for f in fields(cls):
        kind = str(f.type).removesuffix(" | None")
        table[f.name] = _COUNT if kind == "int" else (bool, 0, 1) if kind == "bool" else _TEXT
    return table


_USAGE_CHECKS: Final = _checks(UsageEvent) | {
    "kind": (UsageKind, 0, 0),
    "outcome": (Outcome, 0, 0),
    "tool_calls": (int, 0, INT32_MAX),
    "writer_epoch": (int, 0, INT32_MAX),
    "schema_version": (int, 1, 32_767),
}
_CALL_CHECKS: Final = _checks(CallAdmitted) | {"schema_version": (int, 1, 32_767)}


def checked(cls: Any, body: dict[str, Any], table: dict[str, Check]) -> Any:
    """Return `cls(**body)` once every field has its type and range; raises IntegrityError that names those that do not.

    A field that this release does not know is passed over: a newer one wrote it.
    """
    wrong: list[FieldError] = []
    values: dict[str, Any] = {}
    for f in fields(cls):
        if f.name not in body:
            if f.default is MISSING:
                wrong.append(FieldError(f.name, "is missing"))
            continue
        value = body[f.name]
        kind, low, high = table[f.name]
        if value is None and f.default is None:
            pass
        elif issubclass(kind, StrEnum):
            try:
                value = kind(value)
            except ValueError:
                wrong.append(FieldError(f.name, f"is none of {', '.join(kind)}"))
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            wrong.append(FieldError(f.name, f"must be {kind.__name__}, not {type(value).__name__}"))
        elif isinstance(value, int) and kind is int and not low <= value <= high:
            wrong.append(FieldError(f.name, f"is {value}, outside {low} to {high}"))
        values[f.name] = value
    if wrong:
        raise IntegrityError(f"A fact is not a whole {cls.__name__}.", errors=wrong)
    return cls(**values)
