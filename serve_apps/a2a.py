"""A2A 1.0's messages as the platform takes and makes them: an agent's card, messages, tasks, errors.

A task is a run and has its id; a context is a conversation, which the agent remembers. The protocol has its readers pass
by what they do not know, so unknown fields are no error here; a part that is no text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from cluster.clock import utc
from cluster.identity.ids import Identifier
from cluster.runs.run import Run, RunStatus
from serve_apps.json_rpc import JsonRpcError, Message

VERSION: Final = "1.0"
TASK_NOT_FOUND, NOT_CANCELABLE, NO_PUSH, UNSUPPORTED, CONTENT_TYPE, NO_CARD, VERSION_NOT_SUPPORTED = (
    -32001,
    -32002,
    -32003,
    -32004,
    -32005,
    -32007,
    -32009,
)
_REASONS: Final = {
    TASK_NOT_FOUND: "TASK_NOT_FOUND",
    NOT_CANCELABLE: "TASK_NOT_CANCELABLE",
    NO_PUSH: "PUSH_NOTIFICATION_NOT_SUPPORTED",
    UNSUPPORTED: "UNSUPPORTED_OPERATION",
    CONTENT_TYPE: "CONTENT_TYPE_NOT_SUPPORTED",
    NO_CARD: "EXTENDED_AGENT_CARD_NOT_CONFIGURED",
    VERSION_NOT_SUPPORTED: "VERSION_NOT_SUPPORTED",
}
STATES: Final = {
    RunStatus.PENDING: "TASK_STATE_SUBMITTED",
    RunStatus.RUNNING: "TASK_STATE_WORKING",
    RunStatus.SUCCESS: "TASK_STATE_COMPLETED",
    RunStatus.ERROR: "TASK_STATE_FAILED",
    RunStatus.CANCELLED: "TASK_STATE_CANCELED",
}
State = Literal[
    "TASK_STATE_SUBMITTED",
    "TASK_STATE_WORKING",
    "TASK_STATE_COMPLETED",
    "TASK_STATE_FAILED",
    "TASK_STATE_CANCELED",
    "TASK_STATE_INPUT_REQUIRED",
    "TASK_STATE_REJECTED",
    "TASK_STATE_AUTH_REQUIRED",
]
PAGE: Final = 50
_TEXT: Final = "text/plain"
_WHO: Final = "An API key or an access token."
ANSWER: Final = "answer"
# A moment as JSON has it.
_Moment = Annotated[
    AwareDatetime, BeforeValidator(lambda value: datetime.fromisoformat(value) if isinstance(value, str) else value)
]


class A2aMessage(Message):
    """One message of the protocol, as JSON-RPC has it."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, alias_generator=to_camel, validate_by_name=True)


class Part(_Open):
    """A piece of a message: text; of the other kinds it is only known that they are not taken."""

    text: str | None = Field(None, max_length=1_000_000)
    media_type: str = Field("", max_length=100)


class AskedMessage(_Open):
    """What a client says to the agent."""

    message_id: str = Field(min_length=1, max_length=100)
    role: Literal["ROLE_USER"]
    parts: list[Part] = Field(min_length=1, max_length=100)
    context_id: Identifier | None = None
    task_id: str = Field("", max_length=100)

    @property
    def text(self) -> str:
        """All that it says; raises JsonRpcError for what is no text."""
        for part in self.parts:
            if part.text is None or part.media_type not in ("", _TEXT):
                raise failed(CONTENT_TYPE, f"Agents take parts of text alone, as {_TEXT}.")
        return "\n".join(part.text or "" for part in self.parts)


class Configuration(_Open):
    """How the answer is to come."""

    accepted_output_modes: list[str] = Field([], max_length=20)
    task_push_notification_config: dict[str, Any] | None = None
    history_length: int | None = Field(None, ge=0, le=1000)
    return_immediately: bool = False


class SendParams(_Open):
    """Parameters of SendMessage and SendStreamingMessage."""

    message: AskedMessage
    configuration: Configuration = Configuration()

    def check(self) -> None:
        """Raise JsonRpcError for what is not offered."""
        wanted = self.configuration
        if wanted.task_push_notification_config:
            raise failed(
                NO_PUSH, "This agent posts no notifications; follow the task by SubscribeToTask, or start a run with a webhook."
            )
        if wanted.accepted_output_modes and not {_TEXT, "text/*", "*/*"} & set(wanted.accepted_output_modes):
            raise failed(CONTENT_TYPE, f"Agents answer with {_TEXT} alone.")


class TaskParams(_Open):
    """Parameters that name a task."""

    id: str = Field(min_length=1, max_length=100)
    history_length: int | None = Field(None, ge=0, le=1000)


class ListParams(_Open):
    """Parameters of ListTasks."""

    context_id: Identifier | None = None
    status: State | None = None
    page_size: int = Field(PAGE, ge=1, le=100)
    page_token: str = Field("", max_length=100)
    history_length: int | None = Field(None, ge=0, le=1000)
    status_timestamp_after: _Moment | None = None
    include_artifacts: bool = False


def failed(code: int, message: str) -> JsonRpcError:
    """Return the error with the protocol's own name of its reason."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": _REASONS[code], "domain": "a2a-protocol.org"}
    return JsonRpcError(code, message, [info])


def no_push() -> JsonRpcError:
    """Return the error of whoever wants to be notified."""
    return failed(NO_PUSH, "A task's end is posted nowhere: follow it by SubscribeToTask, or start a run with a webhook.")


def check_version(header: str) -> None:
    """Raise JsonRpcError for another revision; a client that names none speaks 0.3."""
    if not header.startswith("1.0"):
        said = f"A2A {header[:20]}" if header else "A2A 0.3, which a client speaks that names no version,"
        raise failed(VERSION_NOT_SUPPORTED, f"{said} is not spoken here: A2A-Version has to be {VERSION}.")


def card(agent: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the card of an agent that answers at `url`."""
    name, can = agent["agent_id"], agent["capabilities"]
    return {
        "name": name,
        "description": f"The agent {name}, of type {agent['agent_type']}.",
        "version": str(agent["created_at"]),
        "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": VERSION}],
        "capabilities": {"streaming": True, "pushNotifications": False, "extendedAgentCard": False},
        "securitySchemes": {
            "bearer": {"httpAuthSecurityScheme": {"scheme": "Bearer", "description": "An API key or an access token."}}
        },
        "securityRequirements": [{"schemes": {"bearer": {"list": []}}}],
        "defaultInputModes": [_TEXT],
        "defaultOutputModes": [_TEXT],
        "skills": [{"id": c, "name": c, "description": f"The agent may do {c}.", "tags": [c]} for c in can],
    }


def task(run: Run, *, history_length: int | None = None, artifacts: bool = True) -> dict[str, Any]:
    """Return a run as a task, with the last `history_length` messages; None is all, which is the one that asked."""
    said: dict[str, Any] = {"id": run.run_id, "contextId": run.thread_id, "status": status(run)}
    if run.answer and run.status.ended and artifacts:
        said["artifacts"] = [artifact(run.answer)]
    if history_length != 0:
        said["history"] = [_asked(run)]
    return said


def tasks(runs: Sequence[Run], total: int, asked: ListParams) -> dict[str, Any]:
    """Return a page of tasks, `total` in all pages."""
    return {
        "tasks": [task(run, history_length=asked.history_length, artifacts=asked.include_artifacts) for run in runs],
        "nextPageToken": runs[-1].run_id if runs and len(runs) < total else "",
        "pageSize": asked.page_size,
        "totalSize": total,
    }


def status(run: Run) -> dict[str, Any]:
    """Return where a task stands; of one that failed, with a message that says why."""
    said: dict[str, Any] = {"state": STATES[run.status], "timestamp": _moment(run.updated_us)}
    if run.status is RunStatus.ERROR:
        why = run.error.get("detail", "The task failed.")
        said["message"] = _message(run, f"{run.run_id}-error", "ROLE_AGENT", why)
    return said


def artifact(text: str) -> dict[str, Any]:
    """Return the answer, or a piece of it."""
    return {"artifactId": ANSWER, "name": ANSWER, "parts": [{"text": text}]}


def _asked(run: Run) -> dict[str, Any]:
    return _message(run, run.metadata.get("message_id", run.run_id), "ROLE_USER", run.messages[-1]["content"])


def _message(run: Run, id_: str, role: str, text: str) -> dict[str, Any]:
    return {"messageId": id_, "contextId": run.thread_id, "taskId": run.run_id, "role": role, "parts": [{"text": text}]}


def _moment(us: int) -> str:
    return utc(us).isoformat(timespec="milliseconds").replace("+00:00", "Z")
