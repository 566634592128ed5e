"""LangGraph's run API as the platform takes it: strict bodies; what is not offered is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import GRAMMAR
from serve_apps.langgraph_messages import Input

UUID_PATTERN: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
StreamMode = Literal["values", "updates", "messages", "messages-tuple", "events"]
MAX_BATCH: Final = 100
_Uuid = Annotated[str, Field(pattern=f"^{UUID_PATTERN}$")]
_Integer = Annotated[int, Field(ge=-(10**15), le=10**15)]
_Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
_Scalar = str | bool | _Integer | _Number | None
_Metadata = Annotated[dict[str, _Scalar | list[_Scalar]], Field(max_length=64)]
# Either its UUID, or an agent's own id.
_AssistantId = Annotated[str, Field(min_length=1, max_length=63, pattern=f"^{GRAMMAR}$")]


def refused(errors: list[FieldError]) -> InvalidRequestError:
    """Return the error for wrong fields. The SDK shows its user nothing but the sentence, so that names them all."""
    return InvalidRequestError("; ".join(f"{e.field}: {e.message}" for e in errors) + ".", errors=errors)


class Body(BaseModel):
    """A body of this protocol."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Return the body; raises InvalidRequestError that names each wrong field by its path."""
        try:
            return cls.model_validate(document)
        except ValidationError as e:
            raise refused(_wrong(e)) from None


def _wrong(error: ValidationError) -> list[FieldError]:
    return [
        FieldError(
            ".".join(str(part) for part in x["loc"] if part not in ("RoleMessage", "TypedMessage")) or "body",
            "is not supported here" if x["type"] == "extra_forbidden" else x["msg"],
        )
        for x in error.errors(include_url=False)[:20]
    ]


class Configurable(Body):
    """How the agent is to answer."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)


class Config(Body):
    """A configuration, of which only `configurable` means something here."""

    configurable: Configurable | None = None


class RunCreate(Body):
    """The body that asks for a run."""

    assistant_id: _AssistantId = Field(description="An assistant's UUID, or an agent's id.")
    input: Input
    config: Config | None = None
    metadata: _Metadata | None = None
    stream_mode: StreamMode | Annotated[list[StreamMode], Field(min_length=1, max_length=5)] = "values"
    stream_subgraphs: Literal[False] = False
    stream_resumable: bool = Field(False, description="The run goes on when its stream breaks, and the client comes back to it.")
    multitask_strategy: Literal["reject", "enqueue", "interrupt", "rollback"] = Field(
        "enqueue", description="What to do when the thread has a run that has not ended."
    )
    if_not_exists: Literal["create", "reject"] = Field("reject", description="What to do when there is no such thread.")
    on_disconnect: Literal["cancel", "continue"] | None = Field(
        None, description="A client that leaves cancels what it waits for, unless this or `stream_resumable` say otherwise."
    )
    on_completion: Literal["keep"] = Field("keep", description="A run is kept until it is deleted, or is over its time.")
    durability: Literal["sync", "async", "exit"] = Field("sync", description="Each step is on disk before the next, in any case.")
    webhook: str | None = Field(None, max_length=2048, description="Where the run's end is posted, signed.")

    def modes(self) -> list[StreamMode]:
        """Return the stream modes."""
        return [self.stream_mode] if isinstance(self.stream_mode, str) else list(self.stream_mode)

    @property
    def continues(self) -> bool:
        """Whether it goes on when whoever waits for it leaves."""
        return self.on_disconnect == "continue" or (self.on_disconnect is None and self.stream_resumable)


class RunBatch(RootModel[Annotated[list[RunCreate], Field(min_length=1, max_length=MAX_BATCH)]]):
    """Several runs, each of its own."""

    @classmethod
    def parse(cls, document: Any) -> list[RunCreate]:
        """Return the bodies; raises as `Body.parse`."""
        try:
            return cls.model_validate(document, strict=True).root
        except ValidationError as e:
            raise refused(_wrong(e)) from None


class RunsCancel(Body):
    """The body that cancels several runs of a thread."""

    thread_id: _Uuid
    run_ids: list[_Uuid] = Field(min_length=1, max_length=MAX_BATCH)


class ThreadCreate(Body):
    """The body that makes a thread."""

    thread_id: _Uuid | None = None
    metadata: _Metadata | None = None
    if_exists: Literal["raise", "do_nothing"] = "raise"


class ThreadPatch(Body):
    """The body that changes a thread: its metadata is merged with these."""

    metadata: _Metadata


class ThreadCount(Body):
    """Which threads are meant."""

    metadata: _Metadata | None = Field(None, description="All of these, as a thread has them.")
    status: Literal["idle", "busy", "interrupted", "error"] | None = None


class ThreadSearch(ThreadCount):
    """Which threads to show, and in which order."""

    ids: list[_Uuid] | None = Field(None, max_length=1000)
    limit: int = Field(10, ge=1, le=100)
    offset: int = Field(0, ge=0, le=100_000)
    sort_by: Literal["thread_id", "created_at", "updated_at"] = "updated_at"
    sort_order: Literal["asc", "desc"] = "desc"


class ThreadHistory(Body):
    """Which states of a thread to show."""

    limit: int = Field(10, ge=1, le=1000)
    before: _Uuid | None = Field(None, description="States before this checkpoint, which is a run's id.")


class AssistantCount(Body):
    """Which assistants are meant."""

    metadata: _Metadata | None = None
    graph_id: _AssistantId | None = Field(None, description="Those of this agent.")
    name: str | None = Field(None, max_length=128)


class AssistantSearch(AssistantCount):
    """Which assistants to show, and in which order."""

    limit: int = Field(10, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=100_000)
    sort_by: Literal["assistant_id", "graph_id", "name", "created_at", "updated_at"] = "assistant_id"
    sort_order: Literal["asc", "desc"] = "asc"


class AssistantPatch(Body):
    """The body that changes an assistant: metadata are merged, the rest is replaced."""

    graph_id: _AssistantId | None = None
    config: Config | None = None
    metadata: _Metadata | None = None
    name: str | None = Field(None, max_length=128)
    description: str | None = Field(None, max_length=2000)


class AssistantCreate(AssistantPatch):
    """The body that makes an assistant."""

    graph_id: _AssistantId = Field(description="The agent that answers for it.")
    assistant_id: _Uuid | None = None
    if_exists: Literal["raise", "do_nothing"] = "raise"


BODIES: Final[tuple[type[BaseModel], ...]] = (
    RunCreate,
    RunBatch,
    RunsCancel,
    ThreadCreate,
    ThreadPatch,
    ThreadCount,
    ThreadSearch,
    ThreadHistory,
    AssistantCount,
    AssistantSearch,
    AssistantPatch,
    AssistantCreate,
)
