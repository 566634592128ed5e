"""Functions that a client offers for an agent's model to call, and the form that it asks of the answer, as OpenAI words them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.agents.answer_schema import ANY_OBJECT, AnswerSchema
from cluster.agents.client_tools import ClientTools
from cluster.errors import FieldError, InvalidRequestError

MAX_FUNCTIONS = 128
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_FORMS = ("text", "json_object", "json_schema")
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
    found: dict[str, FieldError] = {}
    for one in error.errors(include_url=False)[:20]:
        location = [None, *one["loc"]]
        path = [str(x) for before, x in pairwise(location) if not _is_kind(x, before, kinds)]
        if "discriminator" in (context := one.get("ctx", {})) and "'" in context["discriminator"]:
            path.append(context["discriminator"].strip("'"))
        if path[-1:] == ["str"]:  # what may be text or a list is told as either
            path.pop()
        name = ".".join(path) or "body"
        found.setdefault(name, FieldError(name, one["msg"]))
    # What is wrong within a list says more than that it is no text.
    return [e for e in found.values() if not any(other.startswith(f"{e.field}.") for other in found)]


def _is_kind(step: int | str | None, before: int | str | None, kinds: Collection[str]) -> bool:
    if isinstance(step, str) and step.startswith("list["):
        return True
    # A union stands in a list or is a field of a request; a field of the same name stands elsewhere.
    return step in (kinds if isinstance(before, int) else _FORMS if before in ("response_format", "format") else ())


def _wrong(field: str, why: str) -> InvalidRequestError:
    return InvalidRequestError("The request is not valid.", errors=[FieldError(field, why)])
