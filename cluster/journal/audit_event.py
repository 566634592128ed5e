"""What someone did, was allowed or was refused, as one row of the audit log. Times are microseconds since 1970 UTC."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from cluster.clock import Clock
from cluster.errors import FieldError, IntegrityError
from cluster.identity.ids import uuid7

SCHEMA_VERSION: Final = 1
# Longest text of one field: what comes from outside must not be able to fill the log.
MAX_TEXT: Final = 4_096


class AuditAction(StrEnum):
    """What was done, as scope:resource:action."""

    ADMISSION_DECIDE = "admission:agent:decide"
    ADMISSION_OUTCOME = "admission:agent:outcome"
    LIFECYCLE_TRANSITION = "lifecycle:agent:transition"
    GATEWAY_REFUSE = "gateway:request:refuse"
    CHANNEL_REFUSE = "channel:call:refuse"
    TOOL_REFUSE = "tool:call:refuse"
    # One agent asked to hand work to another; the actor is the one that asked.
    DELEGATION_DECIDE = "delegation:agent:decide"
    JOB_START = "job:run:start"
    JOB_END = "job:run:end"
    # A process is gone and its journal was read to the end; the detail counts what it lost.
    JOURNAL_END = "journal:writer:end"
    # A journal is not what was written; nothing after the place named is taken from it.
    JOURNAL_BROKEN = "journal:segment:broken"
    # A fact that is no row; the detail holds it as it was.
    FACT_QUARANTINE = "lake:fact:quarantine"
    # Another object stands under a key of ours; the rows went to quarantine.
    SEGMENT_CONFLICT = "lake:segment:conflict"
    RECONCILER_KILL = "reconciler:actor:kill"
    # An administrator changed who may ask: the object is the tenant, the project or the key.
    TENANT_MAKE = "tenancy:tenant:make"
    TENANT_CHANGE = "tenancy:tenant:change"
    PROJECT_MAKE = "tenancy:project:make"
    PROJECT_CHANGE = "tenancy:project:change"
    KEY_MAKE = "tenancy:key:make"
    KEY_ROTATE = "tenancy:key:rotate"
    KEY_CHANGE = "tenancy:key:change"
    KEY_REVOKE = "tenancy:key:revoke"
    # An access token was given out; the detail says for what and how long, never the token.
    TOKEN_ISSUE = "identity:token:issue"  # noqa: S105  # the name of an action
    TOKEN_REVOKE = "identity:token:revoke"  # noqa: S105
    # The embedded issuer signs with a new key.
    SIGNING_KEY_ROTATE = "identity:signing_key:rotate"
    POLICY_LOAD = "policy:bundle:load"
    NODE_START = "cluster:node:start"
    # A node takes no agents any more, and those that it had were ended; it takes agents again.
    NODE_DRAIN = "cluster:node:drain"
    NODE_RESUME = "cluster:node:resume"


class AuditOutcome(StrEnum):
    """How it ended."""

    ALLOWED = "allowed"
    DENIED = "denied"
    DONE = "done"
    FAILED = "failed"
    # A decision that was made and never took effect.
    VOID = "void"


def _clip(text: str | None) -> str | None:
    """Return `text` as valid Unicode of bounded length: a lone surrogate from outside must not block the log."""
    if text is None:
        return None
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(slots=True)
class AuditEvent:
    """One audit event; its fields are the columns of the lake. `detail` is stored as JSON text in `detail_json`."""

    event_id: str
    event_time: int
    action: str
    outcome: AuditOutcome
    # Who did it: a principal, or the part of the platform ("governance").
    actor: str
    tenant_id: str | None = None
    # What it was done to: an agent id, a key, a journal.
    object_id: str | None = None
    request_id: str | None = None
    decision_id: str | None = None
    reason: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def new(
        cls,
        clock: Clock,
        action: AuditAction | str,
        outcome: AuditOutcome | str,
        *,
        actor: str,
        tenant_id: str | None = None,
        object_id: str | None = None,
        request_id: str | None = None,
        decision_id: str | None = None,
        reason: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> AuditEvent:
        """Return an event of now with an id of its own; texts are cut at 4,096 characters.

        `action` is of the form scope:resource:action; `detail` must be what JSON can say. Raises ValueError otherwise.
        """
        if len(action.split(":")) != 3:
            raise ValueError(f"an audit action is scope:resource:action; got {action[:80]!r}")
        return cls(
            event_id=uuid7(),
            event_time=clock.now_us(),
            action=str(action),
            outcome=AuditOutcome(outcome),
            actor=_clip(actor) or "",
            tenant_id=_clip(tenant_id),
            object_id=_clip(object_id),
            request_id=_clip(request_id),
            decision_id=_clip(decision_id),
            reason=_clip(reason),
            detail=detail or {},
        )

    def to_body(self) -> dict[str, Any]:
        """Return the body of a fact on Stream.AUDIT; raises ValueError or TypeError when `detail` is not JSON."""
        return {
            "event_id": self.event_id,
            "event_time": self.event_time,
            "action": self.action,
            "outcome": self.outcome,
            "actor": self.actor,
            "tenant_id": self.tenant_id,
            "object_id": self.object_id,
            "request_id": self.request_id,
            "decision_id": self.decision_id,
            "reason": self.reason,
            "detail_json": json.dumps(self.detail, sort_keys=True, separators=(",", ":"), allow_nan=False),
            "schema_version": self.schema_version,
        }

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> AuditEvent:
        """Return the event of a fact's body; raises IntegrityError that names every field that is wrong."""
        wrong: list[FieldError] = []
        values: dict[str, Any] = {}
        for name in ("event_id", "action", "actor"):
            if not isinstance(body.get(name), str):
                wrong.append(FieldError(name, "must be text"))
            values[name] = body.get(name)
        for name in ("tenant_id", "object_id", "request_id", "decision_id", "reason"):
            if not isinstance(body.get(name), str | None):
                wrong.append(FieldError(name, "must be text or nothing"))
            values[name] = body.get(name)
        time, version = body.get("event_time"), body.get("schema_version", SCHEMA_VERSION)
        if type(time) is not int or not 0 <= time < 1 << 63:
            wrong.append(FieldError("event_time", "must be microseconds since 1970"))
        if type(version) is not int or not 1 <= version <= 32_767:
            wrong.append(FieldError("schema_version", "must be 1 to 32767"))
        values |= {"event_time": time, "schema_version": version}
        try:
            values["outcome"] = AuditOutcome(body.get("outcome", ""))
        except ValueError:
            wrong.append(FieldError("outcome", f"is none of {', '.join(AuditOutcome)}"))
        try:
            values["detail"] = json.loads(body.get("detail_json", "{}"))
        except (ValueError, TypeError) as e:
            wrong.append(FieldError("detail_json", f"is not JSON: {e}"))
        if wrong:
            raise IntegrityError("A fact is not a whole AuditEvent.", errors=wrong)
        return cls(**values)
