"""A task as A2A's stream of updates: the task, that it works, its answer piece by piece, how it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cluster.runs.run import Run, RunEvent, RunStatus
from serve_apps import a2a
from serve_apps.json_rpc import answer_to


async def task_stream(id_: int | str, run: Run, events: AsyncGenerator[RunEvent]) -> AsyncGenerator[bytes]:
    """Yield the updates of `run`, whose events from the first on are `events`, as answers to the request `id_`.

    Whoever comes later gets all pieces again: the first one replaces what was known of the answer.
    """

    def sent(what: str, update: dict[str, Any]) -> bytes:
        return b"data: " + answer_to(id_, {what: update}) + b"\n\n"

    def place() -> dict[str, Any]:
        return {"taskId": run.run_id, "contextId": run.thread_id}

    yield sent("task", a2a.task(run))
    began = run.status is not RunStatus.PENDING
    pieces = 0
    async with aclosing(events):
        async for event in events:
            if event.run is None:
                if not began:
                    began = True
                    working = {"state": a2a.STATES[RunStatus.RUNNING]}
                    yield sent("statusUpdate", place() | {"status": working})
                update = place() | {"artifact": a2a.artifact(event.text), "append": pieces > 0, "lastChunk": False}
                pieces += 1
                yield sent("artifactUpdate", update)
                continue
            if pieces:
                yield sent("artifactUpdate", place() | {"artifact": a2a.artifact(""), "append": True, "lastChunk": True})
            yield sent("statusUpdate", place() | {"status": a2a.status(event.run)})
