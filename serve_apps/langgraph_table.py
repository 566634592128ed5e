"""LangGraph's routes in one table, and what the document says of their parameters."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cluster.identity.roles import Scope
from serve_apps.edge import Edge, Handler
from serve_apps.exchange import Exchange
from serve_apps.langgraph import (
    AssistantCount,
    AssistantCreate,
    AssistantPatch,
    AssistantSearch,
    RunBatch,
    RunCreate,
    RunsCancel,
    ThreadCount,
    ThreadCreate,
    ThreadHistory,
    ThreadPatch,
    ThreadSearch,
)
from serve_apps.langgraph_assistants import LangGraphAssistants
from serve_apps.langgraph_replies import reply
from serve_apps.langgraph_routes import LangGraphRoutes
from serve_apps.langgraph_threads import LangGraphThreads


class LangGraphServer:
    """The handlers that tell of the server."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def langgraph_ok(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/ok: this process answers."""
        return reply({"ok": True})

    async def langgraph_info(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/info: which release answers, and what of the protocol it has."""
        self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        flags = dict.fromkeys(("assistants", "threads", "runs"), True) | dict.fromkeys(("crons", "store", "langsmith"), False)
        return reply({"version": metadata.version("sovereign"), "flags": flags})


def langgraph_table(edge: Edge) -> list[tuple[str, str, Handler, type[BaseModel] | None, tuple[int, ...]]]:
    """Return each route's method, path, handler, body and statuses."""
    server, assistants, threads = LangGraphServer(edge), LangGraphAssistants(edge), LangGraphThreads(edge)
    runs = LangGraphRoutes(edge, assistants, threads)
    every, thread = "/assistants", "/threads/{thread_id}"
    one, run = f"{every}/{{assistant_id}}", f"{thread}/runs/{{run_id}}"
    table: list[tuple[str, str, Handler, type[BaseModel] | None]] = [
        ("GET", "/ok", server.langgraph_ok, None),
        ("GET", "/info", server.langgraph_info, None),
        ("POST", every, assistants.create_assistant, AssistantCreate),
        ("POST", f"{every}/search", assistants.search_assistants, AssistantSearch),
        ("POST", f"{every}/count", assistants.count_assistants, AssistantCount),
        ("GET", one, assistants.show_assistant, None),
        ("PATCH", one, assistants.change_assistant, AssistantPatch),
        ("DELETE", one, assistants.delete_assistant, None),
        ("GET", f"{one}/schemas", assistants.show_schemas, None),
        ("POST", "/threads", threads.create_thread, ThreadCreate),
        ("POST", "/threads/search", threads.search_threads, ThreadSearch),
        ("POST", "/threads/count", threads.count_threads, ThreadCount),
        ("GET", thread, threads.show_thread, None),
        ("PATCH", thread, threads.change_thread, ThreadPatch),
        ("DELETE", thread, threads.delete_thread, None),
        ("GET", f"{thread}/state", threads.show_state, None),
        ("GET", f"{thread}/state/{{checkpoint_id}}", threads.show_checkpoint, None),
        ("POST", f"{thread}/history", threads.show_history, ThreadHistory),
        ("POST", f"{thread}/runs", runs.create_run, RunCreate),
        ("POST", f"{thread}/runs/wait", runs.wait_run, RunCreate),
        ("POST", f"{thread}/runs/stream", runs.stream_run, RunCreate),
        ("GET", f"{thread}/runs", runs.list_thread_runs, None),
        ("GET", run, runs.show_thread_run, None),
        ("DELETE", run, runs.delete_thread_run, None),
        ("POST", f"{run}/cancel", runs.cancel_thread_run, None),
        ("GET", f"{run}/join", runs.join_run, None),
        ("GET", f"{run}/stream", runs.join_run_stream, None),
        ("POST", "/runs", runs.create_run, RunCreate),
        ("POST", "/runs/wait", runs.wait_run, RunCreate),
        ("POST", "/runs/stream", runs.stream_run, RunCreate),
        ("POST", "/runs/batch", runs.create_runs, RunBatch),
        ("POST", "/runs/cancel", runs.cancel_thread_runs, RunsCancel),
    ]
    return [(method, f"/langgraph{path}", handler, body, (200,)) for method, path, handler, body in table]


def _query(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


_FLAG: Final = {"type": "string", "enum": ["0", "1", "true", "false"]}
_ACTION: Final = _query("action", enum=["interrupt", "rollback"], type="string")
_SUBGRAPHS: Final = _query("subgraphs", enum=["false"], type="string")
_LEAVING: Final = _query("cancel_on_disconnect", **_FLAG)
PARAMETERS: Final[dict[str, list[dict[str, Any]]]] = {
    "list_thread_runs": [
        _query("limit", type="integer", minimum=1, maximum=1000, default=10),
        _query("offset", type="integer", minimum=0, maximum=99_999, default=0),
        _query("status", enum=["pending", "running", "error", "success", "timeout", "interrupted"], type="string"),
    ],
    "join_run": [_LEAVING],
    "join_run_stream": [
        _LEAVING,
        _query("stream_mode", type="array", items={"enum": ["values", "updates", "messages", "messages-tuple", "events"]}),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "string", "pattern": "^([0-9]{1,9}-[0-9]|-1)$"},
            "description": "Begin after this event.",
        },
    ],
    "cancel_thread_run": [_query("wait", **_FLAG), _ACTION],
    "cancel_thread_runs": [_ACTION],
    "show_state": [_SUBGRAPHS],
    "show_checkpoint": [_SUBGRAPHS],
}
_SOME: Final = {"type": "array", "items": {"type": "object"}}
_COUNT: Final = {"type": "integer", "minimum": 0}
# What is answered where it is no object.
ANSWERS: Final[dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("search_assistants", "search_threads", "show_history", "list_thread_runs", "create_runs"), _SOME),
    **dict.fromkeys(("count_assistants", "count_threads"), _COUNT),
}
STREAMS: Final = frozenset({"stream_run", "join_run_stream"})
