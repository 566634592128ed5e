"""A run as a stream of LangGraph's events, whatever the modes that a client chose: each has an id, and whoever saw it goes on.

An event's id is the number of the run's own event, and its place among those that this one becomes in all modes together.
So it is the same for every client, on every connection and at every gateway.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, Final

import orjson

from cluster.errors import FieldError, SovereignError
from cluster.runs.run import Run, RunEvent, RunStatus
from serve_apps.langgraph import refused
from serve_apps.langgraph_messages import answered, asked, spoken

# A comment is sent when nothing else was for so long, so that nobody on the way takes the connection for dead.
QUIET_S: Final = 15.0
_ID: Final = re.compile(r"([0-9]{1,9})-([0-9])")
START: Final = (-1, 0)
_CUT: Final = {"error": "deadline_exceeded", "message": "The connection has lasted as long as a call may; its run is cancelled."}
# What ends a stream whose run ends with it, though it came to no end.
CUT: Final = b"event: error\ndata: " + orjson.dumps(_CUT) + b"\n\n"

# The mode it belongs to (empty for all), its name, its data.
Part = tuple[str, str, Any]
Messages = list[dict[str, Any]]


def position(last_event_id: str) -> tuple[int, int]:
    """Return the place of an event in its run; raises InvalidRequestError for what is no id of ours."""
    if last_event_id in ("", "-1"):
        return START
    if not (found := _ID.fullmatch(last_event_id)):
        raise refused([FieldError("Last-Event-ID", "must be the id of an event of this run, or -1 for its start")])
    return int(found[1]), int(found[2])


async def run_stream(
    run: Run,
    events: AsyncGenerator[RunEvent],
    before: Callable[[], Awaitable[Messages]],
    labels: dict[str, Any],
    *,
    modes: Collection[str],
    after: tuple[int, int] = START,
) -> AsyncGenerator[bytes]:
    """Yield server-sent events of `run` that come after the place `after`.

    `events` are all of the run's, `before` returns its thread's messages before it, once it has begun; `labels` say what
    the run is.
    """

    def sent(seq: int, parts: list[Part], first: int = 0) -> bytes:
        chosen = [
            f"id: {seq}-{place}\nevent: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"
            for place, (mode, name, data) in enumerate(parts, first)
            if (seq, place) > after and (not mode or mode in modes)
        ]
        return b"".join(chosen)

    try:
        async with aclosing(events):
            async for block in _blocks(run, events, before, labels, sent):
                yield block
    except SovereignError as error:
        # A run that was rolled back is there no more, for whoever follows it either.
        told = {"error": error.code, "message": str(error)}
        yield b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"


async def _blocks(
    run: Run,
    events: AsyncGenerator[RunEvent],
    before: Callable[[], Awaitable[Messages]],
    labels: dict[str, Any],
    sent: Callable[..., bytes],
) -> AsyncGenerator[bytes]:
    if first := sent(0, [("", "metadata", {"run_id": run.run_id, "attempt": 1})]):
        yield first
    text, known = "", Messages()
    async for event in events:
        if not known:  # it has begun, so that all before it has ended
            known = [*await before(), *asked(run)]
            if began := sent(0, [("values", "values", {"messages": known}), ("events", "events", _chain(labels, "start"))], 1):
                yield began
        if event.run is None:
            text += event.text
            parts = _pieces(run, text, event, labels)
        else:
            parts = _end(event.run, known, labels)
        if block := sent(event.seq, parts):
            yield block


def _pieces(run: Run, text: str, event: RunEvent, labels: dict[str, Any]) -> list[Part]:
    """Return what a piece of the answer is in each mode."""
    whole, chunk = spoken(run, text), spoken(run, event.text, "AIMessageChunk")
    said = {"event": "on_chat_model_stream", "name": labels["graph_id"], "data": {"chunk": chunk}}
    parts: list[Part] = [("messages", "messages/metadata", {whole["id"]: {"metadata": labels}})] if event.seq == 1 else []
    return [
        *parts,
        ("messages", "messages/partial", [whole]),
        ("messages-tuple", "messages", [chunk, labels]),
        ("events", "events", said | {"run_id": run.run_id, "tags": [], "metadata": labels}),
    ]


def _end(run: Run, known: Messages, labels: dict[str, Any]) -> list[Part]:
    """Return what the end of a run is in each mode."""
    if run.status is not RunStatus.SUCCESS:
        return [("", "error", failure(run)), ("", "end", None)]
    message = answered(run)
    return [
        ("messages", "messages/complete", [message]),
        ("updates", "updates", {labels["graph_id"]: {"messages": [message]}}),
        ("events", "events", _chain(labels, "end") | {"data": {"output": {"messages": [message]}}}),
        ("values", "values", {"messages": [*known, message]}),
        ("", "end", None),
    ]


def failure(run: Run) -> dict[str, Any]:
    """Return why a run that has ended did not end well."""
    return {"error": run.error.get("code", run.status), "message": run.error.get("detail", f"The run is {run.status}.")}


def _chain(labels: dict[str, Any], what: str) -> dict[str, Any]:
    about = {"run_id": labels["run_id"], "tags": [], "metadata": labels, "data": {}}
    return {"event": f"on_chain_{what}", "name": labels["graph_id"]} | about


async def kept_alive(blocks: AsyncGenerator[bytes], *, until: float, cut: bytes = b"") -> AsyncGenerator[bytes]:
    """Yield `blocks` until the loop's clock says `until`, then `cut`; and a comment whenever none comes for a while."""
    loop = asyncio.get_running_loop()
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(blocks))
            while not (await asyncio.wait((coming,), timeout=min(QUIET_S, max(0.0, until - loop.time()))))[0]:
                if loop.time() >= until:
                    yield cut
                    return
                yield b": quiet\n\n"
            yield await coming
    except StopAsyncIteration:
        return
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait((coming,))
        await blocks.aclose()
