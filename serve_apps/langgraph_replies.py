"""What all of LangGraph's routes do with a body and an answer, and how they show a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.admission.strict_json import parse_strict_json
from cluster.clock import utc
from cluster.runs.run import Run, RunStatus
from serve_apps.edge import Edge
from serve_apps.langgraph_messages import asked

_STATUS: Final = {RunStatus.CANCELLED: "interrupted"}
T_co = TypeVar("T_co", covariant=True)


class Parses(Protocol[T_co]):
    """A kind of body."""

    def parse(self, document: Any) -> T_co:
        """Return the body; raises InvalidRequestError."""
        ...


async def parsed(edge: Edge, request: Request, kind: Parses[T_co]) -> T_co:
    """Return the request's body; raises InvalidRequestError that names each wrong field."""
    return kind.parse(parse_strict_json(await edge.body(request), max_bytes=edge.settings.max_body_bytes))


def reply(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer as JSON."""
    return Response(orjson.dumps(document), status_code=status, media_type="application/json", headers=headers)


def matches(metadata: dict[str, Any], wanted: dict[str, Any] | None) -> bool:
    """Return whether `metadata` has all that is wanted."""
    return all(name in metadata and metadata[name] == value for name, value in (wanted or {}).items())


def run_object(run: Run, thread_id: str) -> dict[str, Any]:
    """Return a run as the protocol has it."""
    status = "timeout" if run.error.get("code") == "deadline_exceeded" else _STATUS.get(run.status, str(run.status))
    return {
        "run_id": run.run_id,
        "thread_id": thread_id,
        "assistant_id": run.metadata["assistant_id"],
        "created_at": utc(run.created_us).isoformat(),
        "updated_at": utc(run.updated_us).isoformat(),
        "status": status,
        "metadata": run.metadata["metadata"],
        "kwargs": {"input": {"messages": asked(run)}},
        "multitask_strategy": run.metadata["multitask_strategy"],
    }


def labels_of(run: Run, thread_id: str) -> dict[str, Any]:
    """Return what a run's events say of it."""
    about = {"run_id": run.run_id, "thread_id": thread_id, "assistant_id": run.metadata["assistant_id"]}
    return about | {"graph_id": run.agent_id, "langgraph_node": run.agent_id}


def place_of(run: Run, thread_id: str, back_to: str = "") -> dict[str, str]:
    """Return the headers that say which run it is, and where the SDK goes when its connection breaks.

    Both are under the API's own root, as the SDK takes them: it puts its base URL before them.
    """
    path = f"/threads/{thread_id}/runs/{run.run_id}"
    return {"content-location": path} | ({"location": f"{path}/{back_to}"} if back_to else {})
