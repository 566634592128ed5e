"""OpenAI's responses as the platform takes them: a strict request, and what is asked of an agent with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

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

CallId = Annotated[str, Field(min_length=1, max_length=256)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
_KINDS = ("message", "function_call", "function_call_output", "input_text", "output_text")


class InputText(Strict):
    """A piece of what was said to the agent."""

    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """A piece of what the agent said, as clients send it back."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Part = Annotated[InputText | OutputText, Field(discriminator="type")]


class MessageItem(Strict):
    """Something that was said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCallItem(Strict):
    """A call of the client's function, as the agent made it."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionOutputItem(Strict):
    """What the client's function returned."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | list[InputText]
    id: str | None = None
    status: ItemStatus | None = None


def _kind_of(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(_kind_of),
]


class ResponseTool(Function):
    """A function of the client's."""

    type: Literal["function"]


class ResponseToolChoice(NamedFunction):
    """The one function to call."""

    type: Literal["function"]


class ResponseSchemaFormat(SchemaForm):
    """JSON of a schema."""

    type: Literal["json_schema"]


class ResponseText(Strict):
    """What form the answer's text has."""

    format: Annotated[TextForm | ObjectForm | ResponseSchemaFormat, Field(discriminator="type")] | None = None


class ResponseStreamOptions(Strict):
    """What a stream carries beside text."""

    include_obfuscation: bool = False


class ConversationRef(Strict):
    """A conversation by its id."""

    id: Identifier


class ResponseRequest(Strict):
    """The body of POST /v1/responses; a field that is not listed is refused by its name, never ignored."""

    model: AgentId = Field(description="The agent's id.")
    input: str | Annotated[list[Item], Field(min_length=1, max_length=1000)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    store: bool | None = Field(
        None, description="Whether it can be continued with previous_response_id; true unless it is false."
    )
    previous_response_id: str | None = Field(None, max_length=256)
    conversation: Identifier | ConversationRef | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_FUNCTIONS)] | None = None
    tool_choice: Choice | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    truncation: Literal["disabled"] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    user: str | None = Field(None, max_length=256)

    @classmethod
    def parse(cls, document: Any) -> ResponseRequest:
        """Return the request; raises InvalidRequestError that names each wrong field by its path."""
        try:
            return cls.model_validate(document)
        except ValidationError as e:
            raise InvalidRequestError("The request is not valid.", errors=field_errors(e, _KINDS)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> ResponseRequest:
        wrong = ""
        if self.previous_response_id is not None and self.conversation is not None:
            wrong = "previous_response_id and conversation each name what it goes on from; send one of them"
        elif self.store is False and (self.previous_response_id is not None or self.conversation is not None):
            wrong = "store is false, and a turn of a conversation is kept in it"
        elif self.background and (self.stream or self.store is False):
            wrong = "background takes neither stream nor store: false"
        if wrong:
            raise ValueError(wrong)
        return self

    @property
    def named_conversation(self) -> str | None:
        """The conversation that the client named."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    def asked(self) -> dict[str, Any]:
        """Return what an invocation takes of it, beside agent and conversation; raises InvalidRequestError for what is wrong."""
        if self.previous_response_id is None and self.conversation is None:
            _refuse_stray_results(self.input)
        form = self.text.format if self.text else None
        return {
            "messages": [{"role": "user", "content": self.input}] if isinstance(self.input, str) else _messages(self.input),
            "instructions": self.instructions or "",
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "model_settings": model_settings(top_p=self.top_p),
            "client_tools": client_tools(self.tools or (), self.tool_choice, self.parallel_tool_calls),
            "response_schema": response_schema(form, "text.format.schema"),
        }

    def echo(self) -> dict[str, Any]:
        """Return the fields that a response repeats."""
        choice = self.tool_choice or "auto"
        form = self.text.format if self.text and self.text.format else TextForm(type="text")
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "store": self.store is not False,
            "temperature": self.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice.model_dump() if isinstance(choice, ResponseToolChoice) else choice,
            "tools": [{"type": "function", "parameters": None, "strict": None} | t.told() for t in self.tools or ()],
            "top_p": self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }


def _messages(items: list[MessageItem | FunctionCallItem | FunctionOutputItem]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
        elif isinstance(item, FunctionOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        else:
            # What the agent said and called in one turn is one message to a model.
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def _text(content: str | list[InputText] | list[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _refuse_stray_results(items: str | list[MessageItem | FunctionCallItem | FunctionOutputItem]) -> None:
    called: set[str] = set()
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, FunctionCallItem):
            called.add(item.call_id)
        elif isinstance(item, FunctionOutputItem) and item.call_id not in called:
            wrong = FieldError(f"input.{i}.call_id", "no function_call before it has this id")
            raise InvalidRequestError("The request is not valid.", errors=[wrong])
