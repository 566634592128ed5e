"""Errors as HTTP, in the one place where that happens: RFC 9457 for the platform's own paths, OpenAI's shape under /v1."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from cluster.errors import SovereignError

# OpenAI's error types by HTTP status; its clients choose their exception class by the status alone.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


# OAuth's own word for an error where ours is another: RFC 6749, section 5.2.
_OAUTH_CODES = {"unauthenticated": "invalid_client", "unavailable": "temporarily_unavailable"}


def problem_response(error: SovereignError, *, openai: bool, request_id: str, oauth: bool = False) -> Response:
    """Return the response for `error`, in OpenAI's shape when `openai`, else as application/problem+json.

    With `oauth` the problem has the two members that OAuth's clients read as well.
    """
    headers = {"x-request-id": request_id}
    if error.status == 401:
        headers["www-authenticate"] = ('Basic realm="sovereign", ' if oauth else "") + 'Bearer realm="sovereign"'
    if error.retry_after_s is not None or error.status == 429:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if openai:
        if not error.retryable and (error.status == 409 or error.status >= 500):
            # OpenAI's clients ask again by themselves on these, which would be work and a bill for nothing.
            headers["x-should-retry"] = "false"
        body: dict[str, Any] = {"error": openai_error(error)}
        media = "application/json"
    else:
        body, media = error.to_problem() | {"request_id": request_id}, "application/problem+json"
        if oauth:
            body |= {"error": _OAUTH_CODES.get(error.code, error.code), "error_description": error.detail}
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
