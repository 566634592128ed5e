"""Bodies are bounded in kind, size and time before anything reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request

from cluster.errors import (
    CancelledCallError,
    InvalidRequestError,
    PayloadTooLargeError,
    SlowRequestError,
    SovereignError,
    UnsupportedMediaTypeError,
)
from serve_apps.bodies import read_body, refuse_body

LIMIT = 1000


class Client:
    """Sends `parts`, then nothing more; counts what was taken of it."""

    def __init__(self, parts: Iterator[bytes], *, leaves: bool = False, hangs: bool = False) -> None:
        self._parts, self._leaves, self._hangs = parts, leaves, hangs
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        part = next(self._parts, None)
        if part is not None:
            self.taken += len(part)
            return {"type": "http.request", "body": part, "more_body": True}
        if self._leaves:
            return {"type": "http.disconnect"}
        if self._hangs:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}


def request(receive: Callable[[], Awaitable[Any]], **headers: str) -> Request:
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


async def read(client: Client, *, within_s: float = 30, **headers: str) -> bytes:
    return await read_body(request(client, **headers), limit=LIMIT, within_s=within_s)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'])
async def test_a_body_in_parts_is_read_whole(kind: str) -> None:
    assert await read(Client(iter([b'{"a":', b" 1}"])), content_type=kind) == b'{"a": 1}'


async def test_exactly_the_limit_is_taken() -> None:
    assert len(await read(Client(iter([b"x" * LIMIT])))) == LIMIT


async def test_an_endless_body_is_refused_where_the_limit_is() -> None:
    """Threat 18. However it comes, no more is held than the limit and one part (control: read_body's running size)."""
    endless = Client(iter(lambda: b"x" * 64, None))
    with pytest.raises(PayloadTooLargeError):
        await read(endless)
    assert endless.taken <= LIMIT + 64


@pytest.mark.parametrize("declared", [str(LIMIT + 1), "9" * 400])
async def test_a_declared_length_is_believed_before_a_byte_is_taken(declared: str) -> None:
    client = Client(iter([b"x"]))
    with pytest.raises(PayloadTooLargeError):
        await read(client, content_length=declared)
    assert client.taken == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_an_encoded_body_is_never_opened(encoding: str) -> None:
    """Threat 18. A small body that would become a large one is refused unread (control: bodies._check_kind)."""
    client = Client(iter([b"x"]))
    with pytest.raises(UnsupportedMediaTypeError) as refused:
        await read(client, content_encoding=encoding)
    assert (client.taken, refused.value.errors[0].field) == (0, "content-encoding")


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/json; charset=utf-16", "\xff"],
    ids=ascii,
)
async def test_another_kind_of_body_is_refused_unread(kind: str) -> None:
    client = Client(iter([b"{}"]))
    with pytest.raises(UnsupportedMediaTypeError) as refused:
        await read(client, content_type=kind)
    assert (client.taken, refused.value.errors[0].field) == (0, "content-type")


async def test_a_client_that_stops_sending_is_not_waited_for() -> None:
    """Threat 20. The request ends at its time, and what waits for it is free again (control: read_body's timeout)."""
    with pytest.raises(SlowRequestError):
        await read(Client(iter([b"{"]), hangs=True), within_s=0.01)


async def test_a_client_that_leaves_is_told_apart() -> None:
    with pytest.raises(CancelledCallError):
        await read(Client(iter([b"{"]), leaves=True))


@pytest.mark.parametrize("headers", [{"content_length": "1"}, {"content_length": "x"}, {"transfer_encoding": "chunked"}])
def test_a_body_where_none_belongs_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        refuse_body(request(Client(iter([])), **headers))
    assert refused.value.errors[0].field == "body"


@pytest.mark.parametrize("headers", [{}, {"content_length": "0"}, {"content_length": "00"}])
def test_no_body_is_none(headers: dict[str, str]) -> None:
    refuse_body(request(Client(iter([])), **headers))


def test_each_refusal_is_a_4xx() -> None:
    """What a client did wrong is the client's to know."""
    refusals: list[type[SovereignError]] = [
        PayloadTooLargeError,
        SlowRequestError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
    ]
    assert [r.status for r in refusals] == [413, 408, 415, 400]
