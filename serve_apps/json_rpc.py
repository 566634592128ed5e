"""JSON-RPC 2.0, as the protocols that are built on it share it: one message in, one answer or error out."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
MEDIA_TYPE: Final = "application/json"
M = TypeVar("M", bound=BaseModel)


class JsonRpcError(Exception):
    """A message that can't be answered; becomes an error with its id."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Strict(BaseModel):
    """What is taken as it is described, and nothing beyond."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(Strict):
    """A request, or a notification when it has no id; an answer to a request of ours has no method, and we make none."""

    jsonrpc: Literal["2.0"]
    method: str = Field(min_length=1, max_length=100)
    id: int | str | None = Field(None, description="Whole number or text; a notification has none.")
    params: dict[str, Any] = Field(default_factory=dict)


def read_message(kind: type[M], document: Any) -> M:
    """Return the message; raises JsonRpcError for a batch, an answer, or what is no JSON-RPC."""
    if isinstance(document, list):
        raise JsonRpcError(INVALID_REQUEST, "Batches are not taken: send each message by itself.")
    return checked(kind, document, INVALID_REQUEST, "message")


def checked(kind: type[M], document: Any, code: int = INVALID_PARAMS, whole: str = "params") -> M:
    """Return `document` as a `kind`; raises JsonRpcError that names each wrong field."""
    try:
        return kind.model_validate(document)
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or whole}: {x['msg']}" for x in e.errors(include_url=False)[:8]]
        raise JsonRpcError(code, "; ".join(wrong)) from None


def answer_to(id_: int | str, result: dict[str, Any]) -> bytes:
    """Return the JSON of an answer."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id_, "result": result})


def error_to(id_: int | str | None, error: JsonRpcError) -> bytes:
    """Return the JSON of an error; `id_` is None where the request's could not be read."""
    said = {"code": error.code, "message": error.message} | ({"data": error.data} if error.data else {})
    return orjson.dumps({"jsonrpc": "2.0", "id": id_, "error": said})
