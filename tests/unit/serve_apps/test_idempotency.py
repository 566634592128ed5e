"""A call that is sent again under its Idempotency-Key, at one gateway and another, and after one has died."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.clock import SystemClock
from cluster.errors import AgentFailedError, InvalidRequestError, OverloadedError
from cluster.identity.ids import ProjectId, TenantId, uuid7_time_us
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope as Permission
from cluster.runs.answers import Begun, CallKey, Known
from cluster.runs.sqlite_answers import SqliteAnswers
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.edge import Edge
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.idempotency import Idempotency
from tests.gates import open_gate


class Gateway:
    """One route at one gateway, whose handler does as a test says and counts."""

    def __init__(self, folder: Path, name: str, living: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Metrics, "of_process", Metrics)
        living.add(name)
        self.idempotency = Idempotency(
            SqliteAnswers(folder / "answers.sqlite"), owner=name, is_alive=living.__contains__, clock=SystemClock()
        )
        self.edge = Edge(
            Settings(home=folder),
            authenticator=cast("Any", self),
            governance=cast("Any", None),
            invoker=cast("Any", None),
            journal=cast("Any", self),
            gate=open_gate(folder / "journal"),
            metrics=Metrics(folder / "metrics", name.partition(".")[0]),
            clock=SystemClock(),
            idempotency=self.idempotency,
        )
        self.calls: list[str] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.fails: Exception | None = None
        endpoint = self.edge.route(self.handle, "POST /call", takes_body=True, idempotent=True)
        self.app = Starlette(routes=[Route("/call", endpoint, methods=["POST"]), Route("/other", endpoint, methods=["POST"])])

    def authenticate(self, authorization: str) -> Principal:
        return Principal(TenantId(authorization or "acme"), ProjectId("default"), "key:1", frozenset(Permission))

    def append(self, _: object) -> None:
        """Take a fact."""

    async def handle(self, request: Request, exchange: Exchange) -> Response:
        body = await self.edge.body(request)
        self.calls.append(exchange.invocation_id)
        await self.goes_on.wait()
        if b"stream" in body:
            ends = asyncio.get_running_loop().time() + 60
            return EventStream(self.events(exchange), deadline_at=ends, on_end=_nothing)
        if self.fails is not None:
            raise self.fails
        return Response(json.dumps({"call": len(self.calls), "echo": body.decode()}), media_type="application/json")

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        yield b"data: one\n\n"
        if self.fails is not None:
            self.edge.record(cast("Any", self.fails), exchange, "/call")
            yield b"data: failed\n\n"
            return
        yield f"data: {len(self.calls)}\n\n".encode()

    async def post(self, key: str | None = "k", body: Any = None, path: str = "/call", tenant: str = "") -> httpx.Response:
        headers = {"authorization": tenant} | ({"idempotency-key": key} if key is not None else {})
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, json=body or {"x": 1}, headers=headers)


async def _nothing() -> None:
    pass


Make = Callable[[str], Gateway]


@asynccontextmanager
async def gateways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Make, set[str]]]:
    living: set[str] = set()
    made: list[Gateway] = []

    def make(name: str) -> Gateway:
        made.append(Gateway(folder, f"gateway.{name}/e1", living, monkeypatch))
        return made[-1]

    try:
        yield make, living
    finally:
        for gateway in made:
            await gateway.idempotency.aclose()


async def test_a_call_that_is_sent_again_is_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, with a header that says so, at every gateway, and the handler has run once."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one, two = make("a"), make("b")
        first, again, there = await one.post(), await one.post(), await two.post()
        assert (one.calls, two.calls) == ([one.calls[0]], [])
        assert [r.headers.get("idempotent-replayed") for r in (first, again, there)] == [None, "true", "true"]
        for replayed in (again, there):
            assert (replayed.status_code, replayed.content) == (200, first.content)
            assert replayed.headers["content-type"] == first.headers["content-type"]


async def test_without_the_header_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is done, and the store is not asked."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one = make("a")
        before = hashlib.sha256((tmp_path / "answers.sqlite-wal").read_bytes()).digest()
        answers = [(await one.post(None)).json()["call"] for _ in range(2)]
        assert answers == [1, 2]
        assert hashlib.sha256((tmp_path / "answers.sqlite-wal").read_bytes()).digest() == before


async def test_threat_15_a_key_with_another_body_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another body or path under a used key is 409 and never the other call's answer; another tenant's key is their own."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one = make("a")
        await one.post()
        for other in (one.post(body={"x": 2}), one.post(path="/other"), one.post(path="/call?y=1")):
            refused = await other
            assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_mismatch")
        assert len(one.calls) == 1
        foreign = await one.post(tenant="rival")
        assert (foreign.status_code, "idempotent-replayed" in foreign.headers, len(one.calls)) == (200, False, 2)


async def test_while_the_first_runs_the_second_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """409 with Retry-After, at every gateway; afterwards there is the answer."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one, two = make("a"), make("b")
        one.goes_on.clear()
        first = asyncio.ensure_future(one.post())
        while not one.calls:  # noqa: ASYNC110  # the handler's first line has no event of its own
            await asyncio.sleep(0)
        for gateway in (one, two):
            early = await gateway.post()
            assert (early.status_code, early.json()["code"], early.headers["retry-after"]) == (
                409,
                "idempotency_in_progress",
                "1",
            )
        one.goes_on.set()
        assert (await first).content == (await two.post()).content


async def test_threat_79_a_call_whose_gateway_died_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have run: 409 that names its invocation, at each gateway, and no second run."""
    async with gateways(tmp_path, monkeypatch) as (make, living):
        one, two = make("a"), make("b")
        one.goes_on.clear()
        first = asyncio.ensure_future(one.post())
        while not one.calls:  # noqa: ASYNC110  # the handler's first line has no event of its own
            await asyncio.sleep(0)
        living.remove("gateway.a/e1")
        lost = await two.post()
        assert (lost.status_code, lost.json()["code"], two.calls) == (409, "idempotency_outcome_unknown", [])
        assert uuid7_time_us(one.calls[0])
        assert one.calls[0] in lost.json()["detail"]
        one.goes_on.set()
        await first


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (OverloadedError("Full."), False),
        (AgentFailedError("Raised."), False),
        (InvalidRequestError("Wrong."), True),
    ],
)
@pytest.mark.parametrize("body", [{"x": 1}, {"x": "stream"}], ids=["whole", "stream"])
async def test_only_an_outcome_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: bool, body: dict[str, Any]
) -> None:
    """429 and failures are not: the next try is a call; a refusal is, for it would come again."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one = make("a")
        one.fails = error
        first = await one.post(body=body)
        await asyncio.gather(*one.idempotency._writing)
        one.fails = None
        second = await one.post(body=body)
        assert (second.content == first.content, len(one.calls)) == (kept, 1 if kept else 2)


async def test_a_stream_is_kept_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and replayed as a stream; one that its client left is forgotten, for its work was stopped."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        one, two = make("a"), make("b")
        body = {"x": "stream"}
        first, again = await one.post(body=body), await two.post(body=body)
        assert first.content == again.content == b"data: one\n\ndata: 1\n\n"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["idempotent-replayed"] == "true"
        await _leave_midway(one.app, b'{"x":"stream"}')
        while one.idempotency._writing:
            await asyncio.gather(*one.idempotency._writing)
        after = await one.post("left", body=body)
        assert "idempotent-replayed" not in after.headers
        assert len(one.calls) == 3


async def _leave_midway(app: Starlette, body: bytes) -> None:
    """Send a request and go away when the first event has come."""
    gone = asyncio.Event()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            gone.set()
            await asyncio.sleep(3600)

    headers = [(b"idempotency-key", b"left"), (b"content-type", b"application/json"), (b"content-length", b"14")]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/call",
        "raw_path": b"/call",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await app(scope, cast("Receive", receive), cast("Send", send))


async def test_a_client_that_leaves_as_its_key_is_written_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the forgetting in Idempotency.answer. Else whoever comes again is told for a day that the first is under way."""
    loop, begin = asyncio.get_running_loop(), SqliteAnswers.begin

    def watched(store: SqliteAnswers, key: CallKey, call: Begun) -> Known | None:
        asyncio.run_coroutine_threadsafe(leave(), loop).result()
        return begin(store, key, call)

    async def leave() -> None:
        first.cancel()

    async with gateways(tmp_path, monkeypatch) as (make, _):
        gateway = make("a")
        monkeypatch.setattr(SqliteAnswers, "begin", watched)
        first = asyncio.ensure_future(gateway.post())
        await asyncio.wait((first,))
        monkeypatch.setattr(SqliteAnswers, "begin", begin)
        await asyncio.gather(*gateway.idempotency._writing)
        assert (await gateway.post()).json()["call"] == 1


async def test_a_stream_that_is_cut_off_before_its_first_event_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: EventStream's end of the tape. A stream that never began has no end of its own."""
    async with gateways(tmp_path, monkeypatch) as (make, _):
        gateway = make("a")
        sending = asyncio.Event()

        async def stalls(_: Any) -> None:
            sending.set()
            await asyncio.Event().wait()

        body = b'{"kind": "stream"}'
        requests: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if requests:
                return requests.pop()
            await sending.wait()
            return {"type": "http.disconnect"}

        headers = [(b"idempotency-key", b"k"), (b"host", b"gateway"), (b"content-length", b"%d" % len(body))]
        headers += [(b"content-type", b"application/json"), (b"authorization", b"")]
        scope = {"type": "http", "method": "POST", "path": "/call", "raw_path": b"/call", "query_string": b"", "root_path": ""}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("gateway", 80), "client": ("c", 1)}
        await gateway.app(scope | {"headers": headers}, receive, stalls)
        await asyncio.gather(*gateway.idempotency._writing)
        assert (await gateway.post(body={"kind": "stream"})).status_code == 200
        assert len(gateway.calls) == 2
