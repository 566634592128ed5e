"""Functions that a client offers for an agent's model to call, and the form that it asks of the answer, as OpenAI words them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.agents.answer_schema import ANY_OBJECT, AnswerSchema
from cluster.agents.client_tools import ClientTools
from cluster.errors import FieldError, InvalidRequestError

MAX_FUNCTIONS = 128
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
FunctionName = Annotated[str, Field(pattern=_NAME)]


class Strict(BaseModel):
    """A part of a request: a field that is not listed is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Function(Strict):
    """What the model is told of a function."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of its arguments.")
    strict: bool | None = None

    def told(self) -> dict[str, Any]:
        """Return it as agents take it."""
        fields = {"name": self.name, "description": self.description, "parameters": self.parameters, "strict": self.strict}
        return {name: value for name, value in fields.items() if value is not None}


class NamedFunction(Strict):
    """A function by its name."""

    name: FunctionName


Choice = Literal["none", "auto", "required"]


def client_tools(
    functions: Sequence[Function], choice: Choice | NamedFunction | None, parallel: bool | None
) -> ClientTools | None:
    """Return what the agent is given of `functions`; None when nothing of them may be called.

    Raises InvalidRequestError for two functions of one name, and for a choice among functions that are not there.
    """
    names = [f.name for f in functions]
    if len(set(names)) < len(names):
        raise _wrong("tools", "two functions have the same name")
    if isinstance(choice, NamedFunction) and choice.name not in names:
        raise _wrong("tool_choice", f"there is no function {choice.name} in tools")
    if choice == "required" and not names:
        raise _wrong("tool_choice", "there are no tools to choose from")
    if choice == "none" or not names:
        return None
    return ClientTools(
        [f.told() for f in functions],
        required=choice == "required",
        named=choice.name if isinstance(choice, NamedFunction) else "",
        parallel=parallel is not False,
    )


class TextForm(Strict):
    """Any text."""

    type: Literal["text"]


class ObjectForm(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaForm(Strict):
    """JSON of a schema, which the answer is checked against."""

    name: FunctionName
    description: str | None = None
    # The schema is kept to either way.
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


def response_schema(form: TextForm | ObjectForm | SchemaForm | None, field: str) -> dict[str, Any] | None:
    """Return the JSON Schema that the answer has to match, if any; raises InvalidRequestError that names `field`."""
    if isinstance(form, SchemaForm):
        AnswerSchema(form.json_schema, field)
        return form.json_schema
    return ANY_OBJECT if isinstance(form, ObjectForm) else None


def model_settings(**asked: Any) -> dict[str, Any] | None:
    """Return the settings that say something; those at their neutral value are as if they had not been sent."""
    neutral = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
    said = {name: value for name, value in asked.items() if value not in (None, neutral.get(name), [])}
    return said or None


def field_errors(error: ValidationError, kinds: Collection[str]) -> list[FieldError]:
    """Return the wrong fields, by the paths that the client knows: without the `kinds` that pydantic tells unions apart by."""
    found = []
    for one in error.errors(include_url=False)[:20]:
        before = [None, *one["loc"]]
        path = [str(x) for x, last in zip(one["loc"], before, strict=False) if x not in kinds or not _may_be_kind(last)]
        if "discriminator" in (context := one.get("ctx", {})):
            path.append(str(context["discriminator"]).strip("'"))
        found.append(FieldError(".".join(path) or "body", one["msg"]))
    return found


def _may_be_kind(before: int | str | None) -> bool:
    # A union stands in a list or is a field of a request; a field of the same name stands elsewhere.
    return isinstance(before, int) or before in ("response_format", "format")


def _wrong(field: str, why: str) -> InvalidRequestError:
    return InvalidRequestError("The request is not valid.", errors=[FieldError(field, why)])
