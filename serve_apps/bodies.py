"""The one way in for every body: what kind it is, how large, how long it may take to come, and nothing where none belongs."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from cluster.errors import (
    CancelledCallError,
    FieldError,
    InvalidRequestError,
    PayloadTooLargeError,
    SlowRequestError,
    UnsupportedMediaTypeError,
)

JSON = "application/json"


async def read_body(request: Request, *, limit: int, within_s: float, kind: str = JSON) -> bytes:
    """Return the request's body: of media type `kind`, in UTF-8, not encoded, at most `limit` bytes, whole after `within_s`.

    Raises UnsupportedMediaTypeError, PayloadTooLargeError as soon as it is known to be larger (no more than that is ever
    held), SlowRequestError, CancelledCallError when the client left. What the bytes say is the parser's to judge.
    """
    headers = request.headers
    _check_kind(headers.get("content-type", ""), headers.get("content-encoding", "identity"), kind)
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise SlowRequestError(
            f"The body was not complete after {within_s:g} s.", hint="Send it faster, or in smaller requests."
        ) from None
    except ClientDisconnect:
        raise CancelledCallError("The client went away before its request was complete.") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def refuse_body(request: Request) -> None:
    """Raise InvalidRequestError when a request has a body on a route that takes none: two readers might differ about it."""
    length = request.headers.get("content-length", "0")
    if length.strip("0") or "transfer-encoding" in request.headers:
        raise InvalidRequestError("This path takes no body.", errors=[FieldError("body", "must be left out")])


def _check_kind(content_type: str, encoding: str, kind: str) -> None:
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(
            "Encoded bodies are not taken.", errors=[FieldError("content-encoding", "Send the body uncompressed.")]
        )
    media, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [p.removeprefix("charset=").strip('"') for p in parameters if p.startswith("charset=")]
    if media != kind or any(c not in ("utf-8", "us-ascii") for c in charsets):
        raise UnsupportedMediaTypeError(
            f"This path takes {kind} in UTF-8.", errors=[FieldError("content-type", f"must be {kind}")]
        )


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body is larger than {limit} bytes.", hint="Send less, or ask for a larger limit.")
