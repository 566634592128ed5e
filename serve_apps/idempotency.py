"""Idempotency-Key: a call that is sent again is answered again, and not done again, across gateways and restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from cluster import wiring
from cluster.clock import Clock, SystemClock
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import is_alive
from cluster.journal.writer import JournalWriter
from cluster.runs.answers import (
    AnswerStore,
    Begun,
    CallKey,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    IdempotencyOutcomeUnknownError,
    KeptAnswer,
    Known,
    Progress,
    fingerprint,
)
from cluster.settings import Settings
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange

log = logging.getLogger(__name__)

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]
# What of an answer belongs to it and not to the request that it answers.
KEPT_HEADERS: Final = ("content-type", "cache-control", "location")
REPLAYED: Final = "idempotent-replayed"
PRUNE_S: Final = 600.0
THREADS: Final = 4
# Of a streamed answer that is being taped.
MOST_TAPED: Final = 4 << 20


class Idempotency:
    """For one event loop. Touches nothing of a request without the header."""

    def __init__(self, store: AnswerStore, *, owner: str, is_alive: Callable[[str], bool], clock: Clock) -> None:
        """Keep answers as `owner`, which must be unique to this process; `is_alive` says whether another still lives."""
        self._store = store
        self._owner = owner
        self._is_alive = is_alive
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="idempotency")
        # Writes that whoever left does not wait for.
        self._writing: set[asyncio.Future[object]] = set()
        self._prune_at = 0.0

    async def answer(self, request: Request, exchange: Exchange, principal: Principal, body: bytes, answer: Answer) -> Response:
        """Return what `answer` does with the request, the first time; later what it did then.

        Not kept, so that the key can be used again, are 429, 500 and above, and calls that their client gave up. Raises
        IdempotencyMismatchError for another request with the same key, IdempotencyInProgressError while the first is
        under way, IdempotencyOutcomeUnknownError when the gateway that did it ended under it.
        """
        key = CallKey.of(principal, exchange.idempotency_key or "")
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        mark, invocation_id = fingerprint(request.method, target, body), uuid7()
        begun = Begun(mark, self._owner, invocation_id, self._clock.now_us())
        forget = partial(self._store.forget, key, invocation_id)
        beginning = asyncio.ensure_future(self._do(partial(self._store.begin, key, begun)))
        try:
            known = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # Its client left, and the store may begin it all the same: nobody would ever end it.
            self._later(forget, after=beginning)
            raise
        if known is not None:
            return await self._again(known, mark)
        self._prune_now_and_then()
        exchange.invocation_id = invocation_id
        try:
            response = await answer(_with(request, body))
        except BaseException:
            self._later(forget)
            raise
        if isinstance(response, EventStream):
            response.tape(partial(self._taped, key, exchange, response), most=MOST_TAPED)
        elif _is_kept(response.status_code):
            await self._do(partial(self._store.answered, key, invocation_id, _kept(response, bytes(response.body))))
        else:
            await self._do(forget)
        return response

    async def aclose(self) -> None:
        """Close the store, once what is being written is."""
        await asyncio.gather(*self._writing, return_exceptions=True)
        self._threads.shutdown()
        self._store.close()

    async def _again(self, known: Known, mark: bytes) -> Response:
        """Return the answer that is known; raises why there is none."""
        call = known.call
        if call.fingerprint != mark:
            raise IdempotencyMismatchError(
                "This Idempotency-Key was sent with another request before.", hint="Give each call a key of its own."
            )
        if known.answer is not None:
            headers = dict(known.answer.headers) | {REPLAYED: "true"}
            return Response(known.answer.body, status_code=known.answer.status, headers=headers)
        if known.progress is Progress.BEGUN and (
            call.owner == self._owner or await self._do(partial(self._is_alive, call.owner))
        ):
            raise IdempotencyInProgressError("The first call with this Idempotency-Key is under way.", retry_after_s=1)
        why = "its answer was too large to be kept" if known.progress is Progress.TOO_LARGE else "its gateway ended under it"
        raise IdempotencyOutcomeUnknownError(
            f"The first call with this Idempotency-Key, invocation {call.invocation_id}, may have done its work: {why}.",
            hint="Look at its usage by that id; then call with another key if it is to be done again.",
        )

    async def _taped(self, key: CallKey, exchange: Exchange, response: Response, tape: bytes | None) -> None:
        """Keep a stream that has ended; forget one that was cut off, whose work is stopped then."""
        failed = exchange.failed
        if tape is None or (failed is not None and not _is_kept(failed.status)):
            # Whoever is cut off is in the middle of being cancelled and can wait for nothing.
            self._later(partial(self._store.forget, key, exchange.invocation_id))
        else:
            await self._do(partial(self._store.answered, key, exchange.invocation_id, _kept(response, tape)))

    def _prune_now_and_then(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            self._later(partial(self._store.prune, self._clock.now_us()))

    async def _do(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    def _later(self, action: Callable[[], object], *, after: asyncio.Future[Known | None] | None = None) -> None:
        async def write() -> object:
            if after is not None:
                await after
            return await self._do(action)

        writing = asyncio.ensure_future(write())
        self._writing.add(writing)
        writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[object]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.warning("what is kept by Idempotency-Key can't be removed: %s", error)


def build_idempotency(settings: Settings, journal: JournalWriter) -> Idempotency:
    """Return the kept answers of a gateway; that it lives is told by the lock of its journal, and so is that another does."""
    return Idempotency(
        wiring.open_answers(settings),
        owner=str(journal.journal),
        is_alive=lambda owner: is_alive(settings.journal_dir, JournalId.parse(owner)),
        clock=SystemClock(),
    )


def _is_kept(status: int) -> bool:
    """Whether what was answered is the call's outcome: not that it could not be done now, nor that its client left."""
    return status < 500 and status not in (429, 499)


def _kept(response: Response, body: bytes) -> KeptAnswer:
    headers = tuple((name, response.headers[name]) for name in KEPT_HEADERS if name in response.headers)
    return KeptAnswer(response.status_code, headers, body)


def _with(request: Request, body: bytes) -> Request:
    """Return the request with its body to be read again; then it is told of the client's leaving as before."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return rest.pop() if rest else await request.receive()

    return Request(request.scope, receive)
