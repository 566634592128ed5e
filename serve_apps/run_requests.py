"""Runs as the platform's own API speaks of them: the body that asks for one, one as JSON, one as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.clock import utc
from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import Identifier
from cluster.runs.run import Run, RunEvent
from serve_apps.chat import Message

# A bound is needed somewhere: what a client has its run remember is no place for documents.
MAX_METADATA: Final = 16
QUIET_S: Final = 15.0


class RunBody(BaseModel):
    """The body of POST /api/v1/agents/{agent_id}/runs: `text`, or `messages`."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"oneOf": [{"required": ["text"]}, {"required": ["messages"]}]},
    )

    text: str = Field("", min_length=1, description="What is asked, as one message of the user.")
    messages: list[Message] = Field([], min_length=1, max_length=1000)
    thread_id: Identifier | None = Field(
        None, description="Continue this conversation, which the agent remembers; its runs take turns."
    )
    multitask: Literal["reject", "enqueue", "interrupt", "rollback"] = Field(
        "enqueue", description="What to do when the thread has a run that has not ended."
    )
    background: bool = Field(True, description="Answer at once; without it the answer is the run as it ended.")
    webhook: str | None = Field(None, max_length=2048, description="Where the run's end is posted, signed.")
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        {}, max_length=MAX_METADATA, description="Shown with the run."
    )

    @classmethod
    def parse(cls, document: Any) -> RunBody:
        """Return the body; raises InvalidRequestError that names each wrong field by its path."""
        try:
            body = cls.model_validate(document)
        except ValidationError as e:
            wrong = [FieldError(".".join(map(str, x["loc"])) or "body", x["msg"]) for x in e.errors(include_url=False)[:20]]
            raise InvalidRequestError("The run is not valid.", errors=wrong) from None
        if bool(body.text) == bool(body.messages):
            raise InvalidRequestError("The run is not valid.", errors=[FieldError("messages", "give either text or messages")])
        return body

    def plain(self) -> list[dict[str, Any]]:
        """Return the messages as an agent takes them."""
        return [message.plain() for message in self.messages] or [{"role": "user", "content": self.text}]

    def options(self) -> dict[str, Any]:
        """Return what it says of how the agent is to answer."""
        said = {"max_output_tokens": self.max_output_tokens, "temperature": self.temperature}
        return {name: value for name, value in said.items() if value is not None}


def run_object(run: Run) -> dict[str, Any]:
    """Return a run as JSON shows it."""
    return {
        "run_id": run.run_id,
        "agent_id": run.agent_id,
        "thread_id": run.thread_id,
        "status": run.status,
        "created_at": utc(run.created_us).isoformat(),
        "updated_at": utc(run.updated_us).isoformat(),
        "answer": run.answer if run.status.ended else None,
        "finish_reason": run.finish_reason or None,
        "usage": run.usage or None,
        "error": run.error or None,
        "metadata": run.metadata,
    }


async def run_events(events: AsyncGenerator[RunEvent], *, until: float) -> AsyncGenerator[bytes]:
    """Yield events as server-sent events: `text` with a piece, last `end` with the run; each with its number as its id.

    While nothing comes a comment is sent now and then, so that nobody on the way takes the connection for dead. They stop
    at `until`, by the loop's clock, for the client to come back.
    """
    loop = asyncio.get_running_loop()
    coming: asyncio.Future[RunEvent] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait((coming,), timeout=min(QUIET_S, max(0.0, until - loop.time()))))[0]:
                if loop.time() >= until:
                    return
                yield b": quiet\n\n"
            event = await coming
            if event.run is None:
                name, data = "text", {"text": event.text}
            else:
                name, data = "end", run_object(event.run)
            yield f"id: {event.seq}\nevent: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"
    except StopAsyncIteration:
        return
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
        else:
            await events.aclose()
