"""LangGraph's run API, for `langgraph-sdk` and those that speak as it does: runs of a thread, or on their own.

A run without a thread is shown as that of a thread that has its own id and nothing else, so that every path of a run leads to it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import FieldError, NotFoundError
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import Run, RunStatus
from cluster.runs.run_store import Document
from serve_apps.edge import Edge, until_gone
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.langgraph import UUID_PATTERN, RunBatch, RunCreate, RunsCancel, refused
from serve_apps.langgraph_assistants import LangGraphAssistants, options_of
from serve_apps.langgraph_messages import state_of
from serve_apps.langgraph_parameters import FLAG, MODES, STATUSES, query_of
from serve_apps.langgraph_replies import labels_of, parsed, place_of, reply, run_object
from serve_apps.langgraph_stream import CUT, START, Messages, failure, kept_alive, position, run_stream
from serve_apps.langgraph_threads import LangGraphThreads
from serve_apps.runs import RunRequest


class LangGraphRoutes:
    """The handlers of runs under /langgraph."""

    def __init__(self, edge: Edge, assistants: LangGraphAssistants, threads: LangGraphThreads) -> None:
        self._edge = edge
        self._assistants = assistants
        self._threads = threads

    async def create_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/{thread_id}/runs: begin a run, which goes on by itself."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, RunCreate)
        run, thread_id = await self._begin(principal, request, exchange, body, attached=False)
        return reply(run_object(run, thread_id), headers=place_of(run, thread_id))

    async def create_runs(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/runs/batch: begin several runs without a thread."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        bodies: list[RunCreate] = await parsed(self._edge, request, RunBatch)
        for name in {body.assistant_id for body in bodies}:  # all or none
            await self._assistants.choose(principal, name)
        return reply([run_object(*await self._begin(principal, request, exchange, body, attached=False)) for body in bodies])

    async def wait_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/{thread_id}/runs/wait: begin a run and answer with its thread's state after it."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, RunCreate)
        run, thread_id = await self._begin(principal, request, exchange, body, attached=True)
        waiting = asyncio.ensure_future(self._edge.runs.wait(principal, run.run_id))
        ended = await until_gone(request, waiting)
        return reply(await self._values(principal, ended, thread_id), headers=place_of(run, thread_id))

    async def stream_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/{thread_id}/runs/stream: begin a run and answer with its events as they come."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, RunCreate)
        run, thread_id = await self._begin(principal, request, exchange, body, attached=True)
        response = self._follow(principal, run, thread_id, modes=body.modes())
        response.headers.update(place_of(run, thread_id, back_to="" if run.cancel_on_disconnect else "stream"))
        return response

    async def list_thread_runs(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/runs: a thread's runs, the newest first."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        query = query_of(request, limit=r"[1-9][0-9]{0,2}|1000", offset=r"[0-9]{1,5}", status=STATUSES)
        thread = await self._threads.thread(principal, request.path_params["thread_id"])
        shown = [run_object(run, thread.id) for run in reversed(await self._threads.runs_of(principal, thread))]
        if wanted := query.get("status"):
            shown = [run for run in shown if run["status"] == wanted[0]]
        begin = int(query.get("offset", ["0"])[0])
        return reply(shown[begin : begin + int(query.get("limit", ["10"])[0])])

    async def show_thread_run(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/runs/{run_id}: a run as it stands."""
        _, run, thread_id = await self._asked(request, exchange)
        return reply(run_object(run, thread_id))

    async def join_run(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/runs/{run_id}/join: wait for a run's end; the thread's state after it."""
        query = query_of(request, cancel_on_disconnect=FLAG)
        principal, run, thread_id = await self._asked(request, exchange)
        leaving = _is_set(query, "cancel_on_disconnect")
        waiting = asyncio.ensure_future(self._edge.runs.wait(principal, run.run_id, cancel_on_disconnect=leaving))
        return reply(await self._values(principal, await until_gone(request, waiting), thread_id))

    async def join_run_stream(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/runs/{run_id}/stream: a run's events from its start, or after Last-Event-ID."""
        query = query_of(request, cancel_on_disconnect=FLAG, stream_mode=MODES)
        after = position(request.headers.get("last-event-id", ""))
        principal, run, thread_id = await self._asked(request, exchange)
        modes = [mode for mode in query.get("stream_mode", []) if mode] or run.metadata["stream_mode"]
        leaving = _is_set(query, "cancel_on_disconnect")
        return self._follow(principal, run, thread_id, modes=modes, after=after, cancel_on_disconnect=leaving)

    async def cancel_thread_run(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/{thread_id}/runs/{run_id}/cancel: end a run; it has stopped, and is billed, with the answer."""
        query = query_of(request, wait=FLAG, action="interrupt|rollback")
        principal, run, _ = await self._asked(request, exchange)
        await self._edge.runs.cancel(principal, run.run_id)
        if query.get("action") == ["rollback"]:
            await self._edge.runs.delete(principal, run.run_id)
        return reply({})

    async def cancel_thread_runs(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/runs/cancel: end several runs of a thread."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        query = query_of(request, action="interrupt|rollback")
        body = await parsed(self._edge, request, RunsCancel)
        runs = [await self._run(principal, body.thread_id, run_id) for run_id in body.run_ids]
        await asyncio.gather(*(self._edge.runs.cancel(principal, run.run_id) for run in runs))
        if query.get("action") == ["rollback"]:
            for run in runs:
                await self._edge.runs.delete(principal, run.run_id)
        return reply({})

    async def delete_thread_run(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /langgraph/threads/{thread_id}/runs/{run_id}: remove a run that has ended."""
        principal, run, _ = await self._asked(request, exchange)
        await self._edge.runs.delete(principal, run.run_id)
        return reply({})

    async def _begin(
        self, principal: Principal, request: Request, exchange: Exchange, body: RunCreate, *, attached: bool
    ) -> tuple[Run, str]:
        """Return a run that is on record, and the id of its thread. One that is `attached` may end with its client."""
        chosen = await self._assistants.choose(principal, body.assistant_id)
        thread: Document | None = None
        if (wanted := request.path_params.get("thread_id")) is not None:
            find = self._threads.thread_or_new if body.if_not_exists == "create" else self._threads.thread
            thread = await find(principal, _uuid(wanted))
        run = await self._edge.runs.start(
            principal,
            RunRequest(
                kind="langgraph",
                agent_id=chosen.agent_id,
                messages=body.input.plain(),
                deadline_s=exchange.deadline_s(self._edge.settings.call_timeout_s),
                thread_id=thread.json["conversation"] if thread else None,
                multitask=body.multitask_strategy,
                webhook=body.webhook or "",
                metadata={
                    "metadata": body.metadata or {},
                    "assistant_id": chosen.assistant_id,
                    "multitask_strategy": body.multitask_strategy,
                    "stream_mode": body.modes(),
                    "message_ids": body.input.ids(),
                },
                cancel_on_disconnect=attached and not body.continues,
                options=chosen.options | options_of(body.config),
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            ),
        )
        return run, thread.id if thread else run.run_id

    def _follow(
        self,
        principal: Principal,
        run: Run,
        thread_id: str,
        *,
        modes: list[Any],
        after: tuple[int, int] = START,
        cancel_on_disconnect: bool | None = None,
    ) -> EventStream:
        async def before() -> Messages:
            return state_of(await self._before(principal, run, thread_id))

        async def end() -> None:
            # Here and not by the events, which nobody may have begun to read when the client left.
            self._edge.runs.leave(principal, run.run_id, cancel_on_disconnect)

        events = self._edge.runs.events(principal, run.run_id, cancel_on_disconnect=False)
        blocks = run_stream(run, events, before, labels_of(run, thread_id), modes=modes, after=after)
        # No connection is held for longer than a call may take; whoever follows comes back with Last-Event-ID.
        until = asyncio.get_running_loop().time() + self._edge.settings.call_timeout_s
        leaving = run.cancel_on_disconnect if cancel_on_disconnect is None else cancel_on_disconnect
        return EventStream(kept_alive(blocks, until=until, cut=CUT if leaving else b""), deadline_at=until, on_end=end)

    async def _before(self, principal: Principal, run: Run, thread_id: str) -> list[Run]:
        """Return the runs of a run's thread that came before it."""
        if run.thread_id is None:
            return []
        runs = await self._threads.runs_of(principal, await self._threads.thread(principal, thread_id))
        ids = [each.run_id for each in runs]
        return runs[: ids.index(run.run_id)] if run.run_id in ids else runs

    async def _values(self, principal: Principal, run: Run, thread_id: str) -> dict[str, Any]:
        """Return the state of a thread after a run, or what ended the run otherwise, as the SDK raises it."""
        if run.status is not RunStatus.SUCCESS:
            return {"__error__": failure(run)}
        return {"messages": state_of([*await self._before(principal, run, thread_id), run])}

    async def _asked(self, request: Request, exchange: Exchange) -> tuple[Principal, Run, str]:
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        thread_id = request.path_params["thread_id"]
        return principal, await self._run(principal, thread_id, request.path_params["run_id"]), thread_id

    async def _run(self, principal: Principal, thread_id: str, run_id: str) -> Run:
        """Return a run of a thread; raises NotFoundError, in the same words whatever is not there."""
        run = await self._edge.runs.get(principal, run_id)
        if run.kind == "langgraph":
            if run.thread_id is None and run_id == thread_id:
                return run
            if run.thread_id and (await self._threads.thread(principal, thread_id)).json["conversation"] == run.thread_id:
                return run
        raise NotFoundError("There is no such run.")


def _is_set(query: dict[str, list[str]], name: str) -> bool:
    return query.get(name, ["0"])[0].lower() in ("1", "true")


def _uuid(thread_id: str) -> str:
    if not re.fullmatch(UUID_PATTERN, thread_id):
        raise refused([FieldError("thread_id", "must be a UUID in lower case")])
    return thread_id
