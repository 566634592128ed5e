"""Runs under /api/v1: calls of an agent that go on in the background, and can be looked at, followed and ended."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.admission.strict_json import parse_strict_json
from cluster.errors import DeadlineExceededError, FieldError, InvalidRequestError, from_problem
from cluster.identity.ids import AgentId, Identifier
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import RunStatus
from cluster.runs.run_store import Which
from serve_apps.edge import Edge, until_gone
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.queries import read_query
from serve_apps.run_requests import RunBody, run_events, run_object
from serve_apps.runs import RunRequest

_LIST: Final = frozenset({"thread_id", "status", "after", "limit"})
_MAX_SEQ_DIGITS: Final = 9


class RunRoutes:
    """The handlers of runs. What was asked and answered is shown to whoever may ask."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def start_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/agents/{agent_id}/runs: ask an agent in the background; 202, or 200 with the run's end."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = RunBody.parse(parse_strict_json(await edge.body(request), max_bytes=edge.settings.max_body_bytes))
        agent_id = AgentId.parse(request.path_params["agent_id"], "agent_id")
        deadline_s = exchange.deadline_s(edge.settings.call_timeout_s)
        # A run of an agent that is not there would only fail where nobody looks.
        await edge.governance.call("get", principal.to_json(), agent_id)
        run = await edge.runs.start(
            principal,
            RunRequest(
                kind="native",
                agent_id=agent_id,
                messages=body.plain(),
                deadline_s=deadline_s,
                thread_id=body.thread_id,
                multitask=body.multitask,
                webhook=body.webhook or "",
                metadata=dict(body.metadata),
                cancel_on_disconnect=not body.background,
                options=body.options(),
                run_id=exchange.invocation_id,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            ),
        )
        place = {"location": f"/api/v1/runs/{run.run_id}"}
        if body.background:
            return _json(run_object(run), 202, place)
        waiting = asyncio.ensure_future(asyncio.wait_for(edge.runs.wait(principal, run.run_id), deadline_s))
        try:
            ended = await until_gone(request, waiting)
        except TimeoutError:
            raise DeadlineExceededError(
                f"The run did not end within {deadline_s:g} s.", hint="Let it go on in the background."
            ) from None
        if ended.status is not RunStatus.SUCCESS:
            raise from_problem(ended.error)
        return _json(run_object(ended), 200, place)

    async def list_runs(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/runs?thread_id=&status=&after=&limit=: the tenant's runs, the newest first; an empty page is the end."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        query = read_query(request, _LIST)
        limit, status, thread_id = int(query.get("limit", "100")), query.get("status", ""), query.get("thread_id", "")
        if status and status not in set(RunStatus):
            raise _wrong("status", f"must be one of {', '.join(RunStatus)}")
        runs = await self._edge.runs.list_runs(
            principal,
            "native",
            Which(
                thread_id=Identifier.parse(thread_id, "thread_id") if thread_id else None,
                status=RunStatus(status) if status else None,
            ),
            after=query.get("after", ""),
            limit=limit,
        )
        return _json({"runs": [run_object(run) for run in runs], "next": runs[-1].run_id if runs else ""})

    async def show_run(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/runs/{run_id}: a run as it stands, with its answer when it has ended."""
        principal, run_id = self._asked(request, exchange)
        return _json(run_object(await self._edge.runs.get(principal, run_id)))

    async def follow_run(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/runs/{run_id}/events: the run's text as it comes, then its end; after Last-Event-ID if that is sent."""
        principal, run_id = self._asked(request, exchange)
        seen = request.headers.get("last-event-id", "0")
        if not (seen.isascii() and seen.isdigit() and len(seen) <= _MAX_SEQ_DIGITS):
            raise _wrong("Last-Event-ID", "must be the id of an event of this run")
        await self._edge.runs.get(principal, run_id)
        events = self._edge.runs.events(principal, run_id, int(seen), cancel_on_disconnect=False)
        # No connection is held for longer than a call may take; whoever follows comes back with Last-Event-ID.
        until = asyncio.get_running_loop().time() + self._edge.settings.call_timeout_s
        return EventStream(run_events(events, until=until), deadline_at=until, on_end=_nothing)

    async def cancel_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /api/v1/runs/{run_id}/cancel: end a run; the answer comes when its work has stopped and is billed."""
        principal, run_id = self._asked(request, exchange)
        return _json(run_object(await self._edge.runs.cancel(principal, run_id)))

    async def delete_run(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /api/v1/runs/{run_id}: remove a run that has ended, with what was asked and answered."""
        principal, run_id = self._asked(request, exchange)
        await self._edge.runs.delete(principal, run_id)
        return _json({"status": "deleted", "run_id": run_id})

    async def webhook_secret(self, request: Request, exchange: Exchange) -> Response:
        """GET /api/v1/webhooks/secret: what the tenant's webhooks are signed with, for whoever manages its keys."""
        principal = self._edge.authenticate(exchange, Scope.KEYS_MANAGE)
        return _json({"secret": await self._edge.runs.webhook_secret(principal)}, headers={"cache-control": "no-store"})

    def _asked(self, request: Request, exchange: Exchange) -> tuple[Principal, str]:
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        return principal, str(request.path_params["run_id"])


async def _nothing() -> None:
    """The events hold nothing beyond themselves."""


def _wrong(field: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} is not valid.", errors=[FieldError(field, why)])


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type="application/json", headers=headers)
