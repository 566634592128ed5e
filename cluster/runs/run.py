"""A run: a call that is on record before it begins, so that others can wait for it, read it again, or end it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal

from cluster.errors import ConflictError, IllegalTransitionError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

Kind = Literal["langgraph", "a2a", "responses", "native"]
# What a new run does about those of its thread that have not ended: be refused, wait for them, end them, or end and
# remove them.
Multitask = Literal["reject", "enqueue", "interrupt", "rollback"]


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return not TRANSITIONS[self]


# One that began never waits again: it may have done something.
TRANSITIONS: Final[Mapping[RunStatus, frozenset[RunStatus]]] = {
    RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.ERROR, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset({RunStatus.SUCCESS, RunStatus.ERROR, RunStatus.CANCELLED}),
    RunStatus.SUCCESS: frozenset(),
    RunStatus.ERROR: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}


class RunLostError(ConflictError):
    """The process that carried the run ended under it: it may have done its work, and is not done again."""

    code = "run_lost"
    status = 500


class ThreadBusyError(ConflictError):
    """The thread has a run that has not ended, and the new one would not wait."""

    code = "thread_busy"


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it stands on record. Times are microseconds since 1970 UTC."""

    run_id: str
    tenant: str
    project: str
    subject: str
    # What whoever started it might do then; it may do no more.
    scopes: tuple[str, ...]
    kind: Kind
    agent_id: str
    # OpenAI chat messages, checked.
    messages: list[dict[str, Any]]
    # Seconds that its call may take once it runs.
    deadline_s: float
    created_us: int
    updated_us: int
    # Runs of one thread take place one after the other; also the agent's conversation.
    thread_id: str | None = None
    # Further fields of its Invocation, such as {"temperature": 0}.
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    # Where its end is told; empty for nowhere.
    webhook: str = ""
    cancel_on_disconnect: bool = False
    request_id: str = ""
    trace_id: str = ""
    status: RunStatus = RunStatus.PENDING
    # Which process carries it, as the name of that process' journal.
    owner: str = ""
    cancel_requested: bool = False
    # The number of its last piece of text so far; its end has the number after.
    last_event: int = 0
    # The whole text; of one that did not end well, as far as it came.
    answer: str = ""
    finish_reason: str = ""
    model: str = ""
    # actors/wire.py's Usage as a dictionary; empty until it ended well. The bill is the agent's journal, by invocation id.
    usage: dict[str, int] = field(default_factory=dict)
    # What else the agent's answer held, such as {"tool_calls": […]}.
    output: dict[str, Any] = field(default_factory=dict)
    # The problem document of what ended it otherwise; empty when nothing did.
    error: dict[str, Any] = field(default_factory=dict)

    @property
    def invocation_id(self) -> str:
        """The id of its call in journals and the lake: its own, for there is never a second call."""
        return self.run_id

    def principal(self) -> Principal:
        """Return who it works for."""
        known = {s.value for s in Scope}
        scopes = frozenset(Scope(s) for s in self.scopes if s in known)
        return Principal(TenantId(self.tenant), ProjectId(self.project), self.subject, scopes)

    def after(self, status: RunStatus, at_us: int, **changes: Any) -> Run:
        """Return the run in `status` with `changes`; raises IllegalTransitionError when the table has no such step."""
        if status not in TRANSITIONS[self.status]:
            raise IllegalTransitionError(f"Run {self.run_id} is {self.status} and can't become {status}.")
        return replace(self, status=status, updated_us=max(at_us, self.updated_us), **changes)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A piece of a run's answer, or its end. `seq` counts from 1 and never changes: whoever saw it goes on after it."""

    seq: int
    text: str
    # The run as it ended, with the last event only.
    run: Run | None = None
