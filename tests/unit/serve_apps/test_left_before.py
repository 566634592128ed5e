"""A client that leaves before its run has begun takes the run with it, wherever the run stands in that moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from cluster.runs.run import Multitask, Run
from cluster.runs.sqlite_run_store import SqliteRunStore
from serve_apps.app import Application
from tests.answering import answering

# An answer that comes after the test's end.
SLOW = '{"script": [{"sleep_s": 60}]}'
_GRAPH = {"assistant_id": "planner", "input": {"messages": [{"role": "user", "content": SLOW}]}}
BODIES = {
    "/api/v1/agents/planner/runs": {"text": SLOW, "background": False},
    "/langgraph/runs/wait": _GRAPH | {"on_disconnect": "cancel"},
    "/langgraph/runs/stream": _GRAPH | {"on_disconnect": "cancel"},
}


class Client:
    """One request of a client that goes away when a test says so."""

    def __init__(self, app: Application, path: str) -> None:
        body = orjson.dumps(BODIES[path])
        self._sends: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        self._left = asyncio.Event()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"host", b"gateway")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("gateway", 80), "client": ("c", 1), "root_path": ""}
        self.answer = asyncio.ensure_future(app(scope | {"headers": headers}, self._receive, self._send))

    def leave(self, cut: bool) -> None:
        """Go away, as the server tells the application, or as Serve does: it cancels whoever answers."""
        self._left.set()
        if cut:
            self.answer.cancel()

    async def _receive(self) -> dict[str, Any]:
        if self._sends:
            return self._sends.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, _: Any) -> None:
        """Nobody reads."""


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_who_leaves_while_the_run_is_written_takes_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, cut: bool
) -> None:
    """Control: `_cancel_written` of Runs.start. Nobody waits for the run yet, and it would go on for nobody."""
    loop, made, create = asyncio.get_running_loop(), asyncio.Queue[Run](), SqliteRunStore.create

    def watched(store: SqliteRunStore, run: Run, multitask: Multitask) -> None:
        asyncio.run_coroutine_threadsafe(leave(), loop).result()
        create(store, run, multitask)
        loop.call_soon_threadsafe(made.put_nowait, run)

    async def leave() -> None:
        client.leave(cut)

    monkeypatch.setattr(SqliteRunStore, "create", watched)
    async with answering(tmp_path) as (app, _):
        client = Client(app, path)
        run = await made.get()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as other, asyncio.timeout(5):
            told = await other.get(f"/api/v1/runs/{run.run_id}/events")
        assert '"status":"cancelled"' in told.text
        await asyncio.wait((client.answer,))
