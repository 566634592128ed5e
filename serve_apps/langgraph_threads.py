"""Threads: conversations with agents. Their state is what their runs asked and were answered.

An agent remembers a conversation under a name that is the thread's own, made with it: a thread that is deleted and made again
under its id begins with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from cluster.clock import utc
from cluster.errors import ConflictError, FieldError, NotFoundError, PayloadTooLargeError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import Run, RunStatus
from cluster.runs.run_store import Document, Which
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange
from serve_apps.langgraph import ThreadCount, ThreadCreate, ThreadHistory, ThreadPatch, ThreadSearch, refused
from serve_apps.langgraph_messages import state_of
from serve_apps.langgraph_replies import matches, parsed, reply

KIND: Final = "thread"
_PAGE: Final = 1000
# What a thread may have in all: its whole state is in one answer.
MAX_STATE_CHARS: Final = 64 << 20
_ENDED: Final = {RunStatus.ERROR: "error", RunStatus.CANCELLED: "interrupted"}


class LangGraphThreads:
    """The handlers under /langgraph/threads, but for runs."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def create_thread(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads: begin a conversation."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, ThreadCreate)
        id_ = body.thread_id or str(uuid4())
        try:
            thread = await self.begin(principal, id_, body.metadata or {})
        except ConflictError:
            if body.if_exists == "raise":
                raise
            thread = await self.thread(principal, id_)
        return reply(await self._shown(principal, thread))

    async def search_threads(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/search: the tenant's threads, without their messages."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        wanted = await parsed(self._edge, request, ThreadSearch)
        found = await self._found(principal, wanted)
        if wanted.ids is not None:
            found = [thread for thread in found if thread.id in wanted.ids]
        sort = {"thread_id": lambda t: t.id, "created_at": lambda t: t.created_us, "updated_at": lambda t: t.updated_us}
        found.sort(key=sort[wanted.sort_by], reverse=wanted.sort_order == "desc")
        end = wanted.offset + wanted.limit
        page = [await self._summary(principal, thread) for thread in found[wanted.offset : end]]
        return reply(page, headers={"x-pagination-next": str(end)} if end < len(found) else None)

    async def count_threads(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/count: how many there are."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        return reply(len(await self._found(principal, await parsed(self._edge, request, ThreadCount))))

    async def show_thread(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}: one thread, with its messages."""
        principal, thread = await self._asked(request, exchange)
        return reply(await self._shown(principal, thread))

    async def change_thread(self, request: Request, exchange: Exchange) -> Response:
        """PATCH /langgraph/threads/{thread_id}: add to a thread's metadata."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, ThreadPatch)
        thread = await self.thread(principal, request.path_params["thread_id"])
        said = thread.json | {"metadata": thread.json["metadata"] | body.metadata}
        changed = await self._edge.runs.put_document(principal, KIND, thread.id, said, thread.version)
        return reply(await self._shown(principal, changed))

    async def delete_thread(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /langgraph/threads/{thread_id}: cancel a thread's runs, and remove them and it."""
        principal, thread = await self._asked(request, exchange)
        await self._clear(principal, thread)
        await self._edge.runs.delete_document(principal, KIND, thread.id)
        await self._clear(principal, thread)  # of those that were started meanwhile
        return reply({})

    async def show_state(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/state: the thread's messages as they stand."""
        principal, thread = await self._asked(request, exchange, state=True)
        return reply(_states(thread, await self.runs_of(principal, thread))[-1])

    async def show_checkpoint(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/threads/{thread_id}/state/{checkpoint_id}: the thread's messages after one of its runs."""
        principal, thread = await self._asked(request, exchange, state=True)
        wanted = request.path_params["checkpoint_id"]
        for state in _states(thread, await self.runs_of(principal, thread))[1:]:
            if state["checkpoint"]["checkpoint_id"] == wanted:
                return reply(state)
        raise NotFoundError("There is no such checkpoint.")

    async def show_history(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/threads/{thread_id}/history: the thread's messages after each of its runs, the newest first."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        wanted = await parsed(self._edge, request, ThreadHistory)
        thread = await self.thread(principal, request.path_params["thread_id"])
        states = _states(thread, await self.runs_of(principal, thread))[1:]
        if wanted.before is not None:
            ids = [state["checkpoint"]["checkpoint_id"] for state in states]
            if wanted.before not in ids:
                raise NotFoundError("There is no such checkpoint.")
            states = states[: ids.index(wanted.before)]
        return reply(states[::-1][: wanted.limit])

    async def thread(self, principal: Principal, id_: str) -> Document:
        """Return a thread; raises NotFoundError."""
        try:
            return await self._edge.runs.get_document(principal, KIND, id_)
        except NotFoundError:
            raise NotFoundError("There is no such thread.") from None

    async def begin(self, principal: Principal, id_: str, metadata: dict[str, Any]) -> Document:
        """Make a thread; raises ConflictError when there is one."""
        said = {"metadata": metadata, "conversation": uuid7()}
        return await self._edge.runs.put_document(principal, KIND, id_, said, 0)

    async def thread_or_new(self, principal: Principal, id_: str) -> Document:
        """Return a thread, which is made when there is none."""
        with suppress(NotFoundError):
            return await self.thread(principal, id_)
        with suppress(ConflictError):
            return await self.begin(principal, id_, {})
        return await self.thread(principal, id_)  # somebody else made it

    async def runs_of(self, principal: Principal, thread: Document) -> list[Run]:
        """Return all runs of a thread, the oldest first; raises PayloadTooLargeError when they are too much to hold at once."""
        runs: list[Run] = []
        size = 0
        while page := await self._page(principal, thread, after=runs[-1].run_id if runs else ""):
            runs += page
            size += sum(len(run.answer) + sum(len(m["content"]) for m in run.messages) for run in page)
            if size > MAX_STATE_CHARS:
                raise PayloadTooLargeError(
                    f"The thread {thread.id} has more than {MAX_STATE_CHARS} characters in its runs.", hint="Delete some of them."
                )
        return runs[::-1]

    async def _page(
        self, principal: Principal, thread: Document, *, after: str = "", limit: int = _PAGE, status: RunStatus | None = None
    ) -> Sequence[Run]:
        conversation = thread.json["conversation"]
        return await self._edge.runs.list_runs(
            principal, "langgraph", Which(thread_id=conversation, status=status), after=after, limit=limit
        )

    async def _clear(self, principal: Principal, thread: Document) -> None:
        while page := await self._page(principal, thread):
            for run in page:
                with suppress(NotFoundError):  # it was rolled back
                    if not run.status.ended:
                        await self._edge.runs.cancel(principal, run.run_id)
                    await self._edge.runs.delete(principal, run.run_id)

    async def _found(self, principal: Principal, wanted: ThreadCount) -> list[Document]:
        found: list[Document] = []
        after = ""
        while page := await self._edge.runs.list_documents(principal, KIND, after=after, limit=_PAGE):
            found += [thread for thread in page if matches(thread.json["metadata"], wanted.metadata)]
            after = page[-1].id
        if wanted.status is not None:
            found = [thread for thread in found if (await self._summary(principal, thread))["status"] == wanted.status]
        return found

    async def _shown(self, principal: Principal, thread: Document) -> dict[str, Any]:
        """Return the thread with its messages."""
        values = {"messages": state_of(await self.runs_of(principal, thread))}
        return await self._summary(principal, thread) | {"values": values}

    async def _summary(self, principal: Principal, thread: Document) -> dict[str, Any]:
        """Return the thread without its messages."""
        newest = await self._page(principal, thread, limit=1)
        open_runs = [await self._page(principal, thread, limit=1, status=s) for s in (RunStatus.RUNNING, RunStatus.PENDING)]
        status = _ENDED.get(newest[0].status, "idle") if newest else "idle"
        return {
            "thread_id": thread.id,
            "created_at": utc(thread.created_us).isoformat(),
            "updated_at": utc(max([thread.updated_us, *(run.updated_us for run in newest)])).isoformat(),
            "metadata": thread.json["metadata"],
            "status": "busy" if any(open_runs) else status,
            "values": None,
            "config": {},
            "interrupts": {},
        }

    async def _asked(self, request: Request, exchange: Exchange, *, state: bool = False) -> tuple[Principal, Document]:
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        for name, value in request.query_params.multi_items():
            if (state, name, value.lower()) != (True, "subgraphs", "false"):
                raise refused([FieldError(name[:64], "is not supported here")])
        return principal, await self.thread(principal, request.path_params["thread_id"])


def _states(thread: Document, runs: list[Run]) -> list[dict[str, Any]]:
    """Return the thread's states: before its first run, and after each that has ended."""
    ended = [run for run in runs if run.status.ended]
    return [_state(thread, ended[:count]) for count in range(len(ended) + 1)]


def _state(thread: Document, runs: list[Run]) -> dict[str, Any]:
    def checkpoint(run: Run | None) -> dict[str, Any]:
        id_ = run.run_id if run else None
        return {"thread_id": thread.id, "checkpoint_ns": "", "checkpoint_id": id_, "checkpoint_map": None}

    last = runs[-1] if runs else None
    return {
        "values": {"messages": state_of(runs)},
        "next": [],
        "tasks": [],
        "interrupts": [],
        "metadata": {"step": len(runs)} | ({"run_id": last.run_id, "graph_id": last.agent_id} if last else {}),
        "created_at": utc(last.updated_us if last else thread.created_us).isoformat(),
        "checkpoint": checkpoint(last),
        "parent_checkpoint": checkpoint(runs[-2]) if len(runs) > 1 else None,
    }
