"""OpenAI's chat completions as the platform takes them: a strict request, and what is asked of an agent with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import AgentId, Identifier
from serve_apps.functions import (
    MAX_FUNCTIONS,
    Choice,
    Function,
    FunctionName,
    NamedFunction,
    ObjectForm,
    SchemaForm,
    Strict,
    TextForm,
    client_tools,
    field_errors,
    model_settings,
    response_schema,
)

# What pydantic puts into a path to say which kind of message it means.
_KINDS = ("system", "developer", "user", "assistant", "tool")
StopWord = Annotated[str, Field(min_length=1, max_length=256)]


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class CalledFunction(Strict):
    """Which function was called, and with what."""

    name: FunctionName
    # JSON as the model wrote it.
    arguments: str


class ToolCall(Strict):
    """A call of the client's function, as the assistant made it."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class SpokenMessage(Strict):
    """What was said to the agent."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = Field(None, max_length=64)

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": text_of(self.content)}


class AssistantMessage(Strict):
    """What the agent said, and what it called; with the fields that clients send back as they got them."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    name: str | None = Field(None, max_length=64)
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        message: dict[str, Any] = {"role": "assistant", "content": text_of(self.content or "")}
        if self.tool_calls:
            message["tool_calls"] = [c.model_dump() for c in self.tool_calls]
        return message


class ToolMessage(Strict):
    """What the client's function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]

    def plain(self) -> dict[str, Any]:
        """Return the message as an agent takes it."""
        return {"role": "tool", "content": text_of(self.content), "tool_call_id": self.tool_call_id}


Message = Annotated[SpokenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionTool(Strict):
    """A function of the client's."""

    type: Literal["function"]
    function: Function


class NamedTool(Strict):
    """The one function to call."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaForm


class StreamOptions(Strict):
    """What a stream carries beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatMetadata(Strict):
    """The labels of a call that the platform understands."""

    conversation_id: Identifier | None = Field(None, description="Continue this conversation: the agent remembers its turns.")


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions; a field that is not listed is refused by its name, never ignored."""

    model: AgentId = Field(description="The agent's id.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**53), le=2**53)
    stop: StopWord | Annotated[list[StopWord], Field(max_length=4)] | None = None
    n: Literal[1] = 1
    user: str | None = Field(None, max_length=256)
    metadata: ChatMetadata | None = None
    tools: Annotated[list[FunctionTool], Field(min_length=1, max_length=MAX_FUNCTIONS)] | None = None
    tool_choice: Choice | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[TextForm | ObjectForm | SchemaFormat, Field(discriminator="type")] | None = None

    @classmethod
    def parse(cls, document: Any) -> ChatRequest:
        """Return the request; raises InvalidRequestError that names each wrong field by its path."""
        try:
            return cls.model_validate(document)
        except ValidationError as e:
            raise InvalidRequestError("The chat request is not valid.", errors=field_errors(e, _KINDS)) from None

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it is a turn of."""
        return self.metadata.conversation_id if self.metadata else None

    def asked(self) -> dict[str, Any]:
        """Return what an invocation takes of it, beside the agent; raises InvalidRequestError for what does not fit together."""
        if self.conversation_id is None:
            _refuse_stray_results(self.messages)
        form = self.response_format
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        return {
            "messages": [m.plain() for m in self.messages],
            "conversation_id": self.conversation_id,
            "max_output_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "model_settings": model_settings(
                stop=[self.stop] if isinstance(self.stop, str) else self.stop,
                top_p=self.top_p,
                seed=self.seed,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
            ),
            "client_tools": client_tools([t.function for t in self.tools or ()], choice, self.parallel_tool_calls),
            "response_schema": response_schema(
                form.json_schema if isinstance(form, SchemaFormat) else form, "response_format.json_schema.schema"
            ),
        }


def text_of(content: Content) -> str:
    """Return the text of a message."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _refuse_stray_results(messages: list[SpokenMessage | AssistantMessage | ToolMessage]) -> None:
    called: set[str] = set()
    for i, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            called.update(c.id for c in message.tool_calls or ())
        elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
            wrong = FieldError(f"messages.{i}.tool_call_id", "no assistant message before it has a tool call of this id")
            raise InvalidRequestError("The chat request is not valid.", errors=[wrong])
