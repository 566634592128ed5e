"""The JSON Schema that an agent's answer has to match: how the model is told, and how its answer is checked."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson
from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError

from cluster.errors import FieldError, InvalidRequestError, ModelFailedError

ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
# The id of the message by which a model is asked once more; it is never kept, and never a user's words.
CORRECTION: Final = "sovereign-correction"
_MOST_ERRORS = 5


class AnswerMismatchError(ModelFailedError):
    """The model was asked twice, and neither answer was of the form that the caller asked for."""

    code = "answer_mismatch"
    retryable = False


class AnswerSchema:
    """A schema, compiled. It reads nothing from anywhere, and its patterns take linear time."""

    def __init__(self, schema: dict[str, Any], field: str = "response_schema") -> None:
        """Compile `schema`; raises InvalidRequestError that names `field` when it is none."""
        self._schema = schema
        try:
            self._validator = Draft202012Validator(schema, retriever=_refuse, pattern_options=RegexOptions())
        except ValueError as e:
            why = str(e).partition("\n")[0][:300]
            raise InvalidRequestError("The answer's schema is not valid.", errors=[FieldError(field, why)]) from None

    @property
    def guidance(self) -> str:
        """What the model is told before it answers."""
        if self._schema == ANY_OBJECT:
            return "Your final answer must be one JSON object, with nothing before or after it."
        schema = json.dumps(self._schema, ensure_ascii=False)
        return f"Your final answer must be one JSON document, with nothing before or after it, that matches this schema: {schema}"

    def wrong(self, text: str) -> str:
        """Return what of `text` is not as the schema has it; empty when all is."""
        try:
            document = orjson.loads(text)
        except ValueError as e:
            return f"It is not JSON: {e}"
        errors: list[ValidationError] = []
        for error in self._validator.iter_errors(document):
            errors.append(error)
            if len(errors) == _MOST_ERRORS:
                break
        return "; ".join(f"{'.'.join(map(str, e.instance_path)) or 'the document'}: {e.message[:200]}" for e in errors)


def correction(wrong: str) -> str:
    """Return the words by which a model is asked once more."""
    return f"That answer is not of the form that was asked for. {wrong}\nAnswer again, with nothing but the JSON document."


def mismatch(wrong: str) -> AnswerMismatchError:
    """Return the error of a call whose second answer was wrong too."""
    return AnswerMismatchError(
        f"The model did not answer in the form that was asked for, though it was asked twice. {wrong}",
        hint="Retry, make the schema simpler, or register the agent with a stronger model.",
    )


def _refuse(uri: str) -> Any:
    raise ValueError(f"a schema may name only what is in itself, not {uri[:100]}")
