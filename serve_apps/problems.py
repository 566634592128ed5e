"""Errors as HTTP, in the one place where that happens: RFC 9457 for the platform's own paths, OpenAI's shape under /v1."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from cluster.errors import SovereignError

# OpenAI's error types by HTTP status; its clients choose their exception class by the status alone.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def problem_response(error: SovereignError, *, openai: bool, request_id: str) -> Response:
    """Return the response for `error`, in OpenAI's shape when `openai`, else as application/problem+json."""
    headers = {"x-request-id": request_id}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="sovereign"'
    if error.retry_after_s is not None or error.status == 429:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if openai:
        body, media = {"error": openai_error(error)}, "application/json"
    else:
        body, media = error.to_problem() | {"request_id": request_id}, "application/problem+json"
    return Response(orjson.dumps(body), status_code=error.status, media_type=media, headers=headers)


def openai_error(error: SovereignError) -> dict[str, Any]:
    """Return the `error` object that OpenAI's clients read; `message` has the sentence, the fields and the hint."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "message": str(error),
        "type": _OPENAI_TYPES.get(error.status, fallback),
        "param": error.errors[0].field if error.errors else None,
        "code": error.code,
    }
