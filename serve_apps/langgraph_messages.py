"""Messages as LangGraph's clients write and read them: LangChain's, or OpenAI's; only text is taken."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field

from actors.wire import Usage
from cluster.runs.run import Run
from serve_apps.chat import TextPart

Role = Literal["system", "developer", "user", "human", "assistant", "ai"]
_TO_AGENT: Final = {"developer": "system", "human": "user", "ai": "assistant"}
_TO_CLIENT: Final = {"system": "system", "user": "human", "assistant": "ai"}
# What LangChain's messages have as well, and which says nothing while it is empty.
_EMPTY_MEMBERS: Final[dict[str, Any]] = {"additional_kwargs": {}, "response_metadata": {}, "name": None}
_EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]
_EmptyList = Annotated[list[Any], Field(max_length=0)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    content: str | list[TextPart]
    id: str | None = Field(None, min_length=1, max_length=128, description="What the message is called in the thread's state.")
    name: str | None = Field(None, max_length=64)
    additional_kwargs: _EmptyObject = {}
    response_metadata: _EmptyObject = {}
    tool_calls: _EmptyList = []
    invalid_tool_calls: _EmptyList = []
    usage_metadata: None = None
    example: Literal[False] = False

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class RoleMessage(_Message):
    """A message as OpenAI has it."""

    role: Role

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        return {"role": _TO_AGENT.get(self.role, self.role), "content": self.text()}


class TypedMessage(_Message):
    """A message as LangChain has it."""

    type: Role

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        return {"role": _TO_AGENT.get(self.type, self.type), "content": self.text()}


class Input(BaseModel):
    """What a run adds to its thread: the agent's state has messages and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    messages: list[RoleMessage | TypedMessage] = Field(min_length=1, max_length=1000)

    def plain(self) -> list[dict[str, Any]]:
        """Return the messages as an agent takes them."""
        return [message.plain() for message in self.messages]

    def ids(self) -> list[str]:
        """Return what each message is called, empty for what has no name of its own."""
        return [message.id or "" for message in self.messages]


def asked(run: Run) -> list[dict[str, Any]]:
    """Return what a run added to its thread, as LangChain's messages."""
    ids = run.metadata.get("message_ids") or [""] * len(run.messages)
    return [
        {
            "type": _TO_CLIENT[message["role"]],
            "content": message["content"],
            "id": id_ or str(uuid5(UUID(run.run_id), str(number))),
            **_EMPTY_MEMBERS,
        }
        for number, (id_, message) in enumerate(zip(ids, run.messages, strict=True))
    ]


def answered(run: Run) -> dict[str, Any]:
    """Return what a run that ended well answered."""
    usage = Usage(**run.usage)
    used, made = usage.input_tokens, usage.output_tokens
    return spoken(run, run.answer) | {
        "response_metadata": {"finish_reason": run.finish_reason, "model_name": run.model},
        "usage_metadata": {"input_tokens": used, "output_tokens": made, "total_tokens": used + made},
    }


def spoken(run: Run, text: str, kind: Literal["ai", "AIMessageChunk"] = "ai") -> dict[str, Any]:
    """Return a message of the agent with `text`, which may be a part of its answer."""
    message: dict[str, Any] = {"type": kind, "content": text, "id": f"run--{run.run_id}", **_EMPTY_MEMBERS}
    message |= {"tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
    return message | ({"tool_call_chunks": []} if kind == "AIMessageChunk" else {})


def state_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the messages of a thread's runs, the oldest first: what was asked, and what was answered of that.

    Of a run that did not end well the agent knows what it was asked, once it began.
    """
    messages: list[dict[str, Any]] = []
    for run in runs:
        if run.status == "success":
            messages += [*asked(run), answered(run)]
        elif run.last_event:
            messages += asked(run)
    return messages
