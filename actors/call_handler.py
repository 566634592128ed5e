"""Answers an agent's calls: opens the books of each, lets the brain work, and settles before the caller hears anything."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from actors.agent_books import AgentBooks, CallBooks, outcome_of
from actors.channel import IncomingCall
from actors.wire import CallAnswer, CallOrder
from cluster.errors import SovereignError
from cluster.journal.usage_event import Outcome
from cluster.telemetry import tracing
from cluster.telemetry.ecs_log import bind

if TYPE_CHECKING:
    # LangChain takes a second to import, and this module is also read where no agent lives.
    from cluster.agents.brain import Brain

# What a slow reader may leave unsent before the model has to wait for it.
UNSENT_BYTES = 16 << 10
# Text that comes this soon after the last was sent leaves together, which spares a frame and a write for each word. A reader
# does not see it: most models take longer for one word.
GATHER_S = 0.005


class CallHandler:
    """What the channel runs for each call of one agent."""

    def __init__(self, books: AgentBooks, brain: Brain) -> None:
        self._books = books
        self._brain = brain

    async def __call__(self, incoming: IncomingCall) -> bytes:
        """Return the result frame's body; raises what ends the call otherwise. Either way its last fact is written first."""
        order = CallOrder.from_bytes(incoming.payload)
        started = self._books.order
        entry = CallBooks(self._books, order, incoming.deadline_s)
        try:
            entry.admit()
        except SovereignError as error:
            error.spent = (0, 0)
            raise
        spec, parent = started.record.spec, order.traceparent
        attributes: dict[str, tracing.Value] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": str(spec.agent_id),
            "gen_ai.agent.version": started.record.version,
            "gen_ai.request.model": spec.model,
            "sovereign.tenant": started.tenant,
            "sovereign.invocation_id": order.invocation_id,
            "sovereign.generation": started.generation,
        }
        with (
            bind(request_id=order.request_id, tenant=started.tenant, agent=str(spec.agent_id), trace_id=order.trace_id),
            tracing.span(f"invoke_agent {spec.agent_id}", kind="server", parent=parent, attributes=attributes) as traced,
        ):
            try:
                answer = await self._result(entry, incoming)
            except BaseException as error:
                entry.settle(outcome_of(error, incoming.why))
                incoming.spent = entry.spent()
                if isinstance(error, SovereignError):
                    error.spent = incoming.spent
                raise
            used = entry.used()
            traced.set({"gen_ai.usage.input_tokens": used.input_tokens, "gen_ai.usage.output_tokens": used.output_tokens})
        entry.settle(Outcome.OK)
        return answer

    async def _result(self, entry: CallBooks, incoming: IncomingCall) -> bytes:
        # Whatever may fail is done here, before the row that says that nothing did.
        text = await self._think(entry, incoming)
        if incoming.why:
            raise asyncio.CancelledError  # somebody swallowed it; the caller hears all the same that the call was ended
        meter = entry.meter
        spent = entry.spent()
        answer = CallAnswer(text, meter.finish_reason, meter.model, entry.used(), meter.client_calls, spent).to_bytes()
        incoming.check_result(answer)
        return answer

    async def _think(self, entry: CallBooks, incoming: IncomingCall) -> str:
        if not incoming.stream:
            return await self._brain.run(entry.call, entry.meter)
        # Closed at once, also when sending fails: what the model used has to be on the meter before the call is settled.
        async with aclosing(self._brain.stream(entry.call, entry.meter)) as pieces, _ChunkPump(incoming) as pump:
            async for piece in pieces:
                await pump.put(piece)
        return ""


class _ChunkPump:
    """Sends a stream's text while the model goes on: the first piece at once, then together what came during one send
    or within GATHER_S after it.
    """

    def __init__(self, incoming: IncomingCall) -> None:
        self._incoming = incoming
        self._held = bytearray()
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._closing = False
        # Runs while more is gathered; None when the next piece is to leave at once.
        self._gathering: asyncio.TimerHandle | None = None
        self._task = asyncio.ensure_future(self._pump())

    async def put(self, text: str) -> None:
        """Add text; waits while more than UNSENT_BYTES are unsent; raises what sending raised."""
        self._held += text.encode("utf-8", "replace")  # models say half of a surrogate pair now and then
        if self._gathering is None:
            self._wake.set()
        while len(self._held) > UNSENT_BYTES and not self._task.done():
            self._wake.set()
            self._sent.clear()
            await self._sent.wait()
        if self._task.done():
            await self._task

    async def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not (self._closing and not self._held):
                await self._wake.wait()
                self._wake.clear()
                if self._held:
                    piece = bytes(self._held)
                    self._held.clear()
                    await self._incoming.send_chunk(piece)
                    self._sent.set()
                    self._stop_gathering()
                    self._gathering = loop.call_later(GATHER_S, self._gathered)
        finally:
            self._stop_gathering()
            self._sent.set()

    def _gathered(self) -> None:
        self._gathering = None
        self._wake.set()

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    async def __aenter__(self) -> _ChunkPump:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._closing = True
        self._wake.set()
        if kind is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        else:
            await self._task
