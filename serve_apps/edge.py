"""What the gateway does for every request, whatever the protocol: identity, bounds, refusals on record, errors as HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from actors.directory import Governance
from actors.invoker import Invocation, InvocationStream, Invoker
from actors.leases import Leases
from actors.wire import CallAnswer
from cluster.clock import Clock
from cluster.errors import AdmissionDeniedError, CancelledCallError, InternalError, SovereignError, StorageError
from cluster.identity.access_tokens import TokenRefusedError
from cluster.identity.authentication import Authenticator
from cluster.identity.key_set import IssuerAwayError
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.gate import JournalGate
from cluster.journal.writer import JournalWriter
from cluster.settings import Settings
from cluster.telemetry import tracing
from cluster.telemetry.metrics import Metrics, Stage
from cluster.telemetry.redaction import redact
from serve_apps.bodies import JSON, read_body, refuse_body
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.idempotency import Idempotency
from serve_apps.problems import problem_response
from serve_apps.runs import Runs

log = logging.getLogger(__name__)

# Above what a fetch of an issuer's keys takes at most.
ISSUER_TIMEOUT_S = 12.0
Handler = Callable[[Request, Exchange], Awaitable[Response]]


class Edge:
    """The collaborators of every route, and the frame that each runs in."""

    def __init__(
        self,
        settings: Settings,
        *,
        authenticator: Authenticator,
        governance: Governance,
        invoker: Invoker,
        leases: Leases | None = None,
        journal: JournalWriter,
        gate: JournalGate,
        metrics: Metrics,
        clock: Clock,
        runs: Runs | None = None,
        idempotency: Idempotency | None = None,
    ) -> None:
        self.settings = settings
        self.governance = governance
        self.invoker = invoker
        self.leases = leases
        self.gate = gate
        self.metrics = metrics
        self.clock = clock
        self._authenticator = authenticator
        self._journal = journal
        self._runs = runs
        self.idempotency = idempotency

    @property
    def runs(self) -> Runs:
        """Calls that outlive their connection; raises InternalError where there are none."""
        if self._runs is None:
            raise InternalError("This gateway keeps no runs.")
        return self._runs

    def route(
        self, handler: Handler, name: str, *, openai: bool = False, takes_body: bool = False, idempotent: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that runs `handler` and turns every error into a response and a refusal on record.

        `name` is the route's method and path, which its spans have. With `idempotent` an Idempotency-Key is heeded.
        """
        method, _, path = name.partition(" ")
        attributes = {"http.request.method": method, "http.route": path}

        async def endpoint(request: Request) -> Response:
            exchange = Exchange(request_id="", trace_id="", authorization="")
            try:
                exchange = Exchange.of(request)
            except SovereignError as error:
                return self.refuse(error, exchange, request.url.path, openai=openai)
            with ExitStack() as traced:
                span = traced.enter_context(tracing.span(name, kind="server", parent=exchange.traceparent, attributes=attributes))
                exchange.trace_id = exchange.trace_id or span.trace_id
                kept = idempotent and exchange.idempotency_key is not None
                response = await answer(request, exchange, once if kept else handler)
                span.set({"http.response.status_code": response.status_code})
                if response.status_code >= 500:
                    span.failed(str(response.status_code))
                if isinstance(response, EventStream):  # not over yet
                    response.keep(traced.pop_all())
                return response

        async def once(request: Request, exchange: Exchange) -> Response:
            if self.idempotency is None:
                raise InternalError("This gateway keeps no answers.")
            principal, body = self.authenticate(exchange, Scope.AGENTS_INVOKE), await self.body(request)
            return await self.idempotency.answer(request, exchange, principal, body, lambda r: answer(r, exchange, handler))

        async def answer(request: Request, exchange: Exchange, handler: Handler) -> Response:
            try:
                if not takes_body:
                    refuse_body(request)
                try:
                    response = await handler(request, exchange)
                except IssuerAwayError as away:
                    if away.fetch is None:
                        raise
                    # Nobody was let in, and nothing of the request was read: it begins again when the keys are here.
                    await asyncio.wait((asyncio.wrap_future(away.fetch),), timeout=ISSUER_TIMEOUT_S)
                    response = await handler(request, exchange)
            except SovereignError as error:
                return self.refuse(error, exchange, request.url.path, openai=openai)
            except Exception:
                log.exception("the gateway failed on %s", request.url.path)
                fault = InternalError("The gateway failed.", hint=f"Tell the operator the request id {exchange.request_id}.")
                return self.refuse(fault, exchange, request.url.path, openai=openai)
            response.headers["x-request-id"] = exchange.request_id
            self._say_rate(response, exchange)
            self.metrics.request("openai" if openai else "native", response.status_code)
            return response

        return endpoint

    def _say_rate(self, response: Response, exchange: Exchange) -> None:
        if self.leases is not None and exchange.principal is not None:
            response.headers.update(self.leases.headers(exchange.principal))

    async def body(self, request: Request, *, limit: int = 0, kind: str = JSON) -> bytes:
        """Return the request's bytes, within the bounds of the settings or `limit`; raises what `read_body` raises."""
        within_s = self.settings.body_timeout_s
        return await read_body(request, limit=limit or self.settings.max_body_bytes, within_s=within_s, kind=kind)

    def authenticate(self, exchange: Exchange, scope: Scope) -> Principal:
        """Return who asks; raises UnauthenticatedError, or AdmissionDeniedError when their key lacks `scope`."""
        principal = exchange.principal = self._authenticator.authenticate(exchange.authorization)
        if scope not in principal.scopes:
            raise AdmissionDeniedError(
                f"This credential may not do that: it lacks the scope {scope.value}.", hint="Use a key or token that has it."
            )
        return principal

    def refuse(self, error: SovereignError, exchange: Exchange, path: str, *, openai: bool) -> Response:
        """Record a refusal and return it as a response; one that can't be recorded is not given, but why it can't be."""
        error = self.record(error, exchange, path)
        self.metrics.request("openai" if openai else "native", error.status)
        response = problem_response(error, openai=openai, oauth=path.startswith("/oauth/"), request_id=exchange.request_id)
        self._say_rate(response, exchange)
        return response

    def record(self, error: SovereignError, exchange: Exchange, path: str) -> SovereignError:
        """Write the one audit fact of a request that was refused here (faults of ours and of agents are not refusals).

        Returns the error to answer with: `error`, or the one that kept it from being recorded.
        """
        self.metrics.refused(error.code)
        exchange.failed = error
        if error.status >= 500:
            return error
        who = exchange.principal
        event = AuditEvent.new(
            self.clock,
            AuditAction.GATEWAY_REFUSE,
            AuditOutcome.DENIED,
            tenant_id=str(who.tenant) if who else "",
            actor=who.subject if who else "",
            # What is wrong may be a secret in the place of a name. Cut first: what is searched is short.
            object_id=redact(path[:200]),
            request_id=exchange.request_id,
            reason=error.code,
            detail={"status": error.status, "fields": [redact(e.field[:100]) for e in error.errors][:20]} | _why(error),
        )
        try:
            # Anybody can be refused as often as they like: that must not fill what is kept for what runs.
            self.gate.check()
            self._journal.append(Fact(Stream.AUDIT, event.to_body()))
        except StorageError as unrecorded:
            self.metrics.refused(unrecorded.code)
            return unrecorded
        return error

    def keep(self, event: AuditEvent) -> None:
        """Write what is about to be done to disk; raises StorageError when that can't be, and then it is not to be done."""
        self.gate.check()
        self._journal.append(Fact(Stream.AUDIT, event.to_body()))
        self._journal.sync()

    async def run(self, request: Request, exchange: Exchange, invocation: Invocation) -> CallAnswer:
        """Return the agent's whole answer; raises as Invoker.run, and CancelledCallError when the client goes away."""
        answer: CallAnswer = await until_gone(request, asyncio.ensure_future(self.invoker.run(invocation)))
        self.metrics.stage(Stage.CHANNEL, exchange.lap_us())
        return answer

    async def open(self, request: Request, exchange: Exchange, invocation: Invocation) -> InvocationStream:
        """Return the agent's answer as a stream that has begun; raises as `run`. Whoever takes it closes it."""
        opening = asyncio.ensure_future(self.invoker.open(invocation))
        try:
            stream: InvocationStream = await until_gone(request, opening)
        except CancelledCallError:
            # It may have opened in the very moment in which the client left.
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await opening.result().aclose()
            raise
        self.metrics.stage(Stage.CHANNEL, exchange.lap_us())
        return stream

    async def ready(self) -> None:
        """Raise UnavailableError unless governance answers."""
        await self.governance.call("ready", timeout_s=5.0)

    def close(self) -> None:
        """Close the journal."""
        self.metrics.flush()
        tracing.flush()
        self._journal.close()


def _why(error: SovereignError) -> dict[str, str]:
    """Return what operators learn of a refused token, and whoever sent it does not."""
    return {"why": error.__cause__.why} if isinstance(error.__cause__, TokenRefusedError) else {}


async def until_gone(request: Request, task: asyncio.Future[Any]) -> Any:
    """Return what `task` comes to, or end it and raise CancelledCallError when the client goes away."""
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    except asyncio.CancelledError:
        raise CancelledCallError("The client went away; the agent's work was stopped.") from None
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def now_s() -> int:
    """Return whole seconds since 1970 UTC, as OpenAI's objects carry them."""
    return int(time.time())
