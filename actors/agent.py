"""One live agent: a Ray actor that holds a brain, listens on the channel, and writes each fact before it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors.agent_books import AgentBooks, CallBooks, outcome_of
from actors.channel import ChannelServer, IncomingCall
from actors.heap import settle
from actors.start_order import StartOrder
from actors.wire import CallAnswer, CallOrder
from cluster.clock import SystemClock
from cluster.identity.grants import GrantVerifier
from cluster.journal.usage_event import Outcome
from cluster.journal.writer import JournalWriter
from cluster.telemetry.ecs_log import bind, configure_logging
from cluster.telemetry.metrics import Metrics

# What a slow reader may leave unsent before the model has to wait for it.
UNSENT_BYTES = 16 << 10


class AgentActor:
    """The process of one agent generation. Ray starts and supervises it; calls come over its own socket."""

    def __init__(self, order: bytes) -> None:
        """Begin to become the agent that `order` names; `start` waits for it."""
        self._agent: LiveAgent | None = None
        # Of the last governor that watches; those of dead ones would hold places of this actor for ever.
        self._watched = asyncio.Event()
        # On a thread, so that it goes on while Ray tells everybody that this actor is there.
        thread = ThreadPoolExecutor(1, thread_name_prefix="start")
        self._built = thread.submit(LiveAgent, StartOrder.from_bytes(order))
        thread.shutdown(wait=False)

    async def start(self, agent_key: bytes) -> bytes:
        """Answer calls whose grants are made with `agent_key`; returns JSON `{"host", "port"}`."""
        agent = await asyncio.wrap_future(self._built)
        await agent.listen(agent_key)
        self._agent = agent
        return json.dumps(agent.address()).encode()

    async def status(self) -> bytes:
        """Return JSON: address, pid, generation, calls under way, and what is enforced or only advisory."""
        return json.dumps(self._agent.status() if self._agent else {"state": "blank"}).encode()

    async def watch(self, idle_s: float) -> str:
        """Return "idle" when no call has run for `idle_s`, and "watched" when somebody else asks; else not while it lives.

        Whoever awaits it learns of this process's end at once, by Ray's error.
        """
        self._watched.set()
        mine = self._watched = asyncio.Event()
        while (left_s := idle_s - (self._agent.idle_s if self._agent else 0.0)) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(mine.wait(), left_s)
                return "watched"
        return "idle"

    async def drain(self, timeout_s: float, only_idle: bool = False) -> bool:
        """Refuse new calls, let running ones end for at most `timeout_s`, close the journal and exit.

        With `only_idle` nothing happens while a call runs. Returns whether the process ends.
        """
        if self._agent is not None:
            if only_idle and self._agent.calls:
                return False
            await self._agent.drain(timeout_s)
        threading.Timer(0.05, os._exit, (0,)).start()  # after the answer has left
        return True


class LiveAgent:
    """What answers calls, once the process knows who it is."""

    def __init__(self, order: StartOrder) -> None:
        """Open the journal, build the brain and enforce what was declared."""
        from cluster import wiring
        from cluster.agents.enforcement import enforce

        settings, spec = order.settings, order.record.spec
        configure_logging("agent", level=settings.log_level, directory=settings.log_dir)
        clock = SystemClock()
        journal = JournalWriter(
            settings.journal_dir, order.writer_id, order.generation, clock=clock, sync_ms=settings.journal_sync_ms
        )
        books = AgentBooks(
            order, journal, Metrics.of_process(settings.metrics_dir, "agent"), clock, wiring.journal_gate(settings)
        )

        def end_over_limit(held: int, allowed: int) -> None:
            books.over_limit(f"held {held} bytes of {allowed} allowed")
            os.kill(os.getpid(), signal.SIGKILL)  # at once: neighbours must not pay for it

        self._order = order
        self._agent_id = str(spec.agent_id)
        self._books = books
        self._brain = wiring.build_brain(settings, order.record, egress_hosts=order.egress_hosts, on_refusal=books.refused_tool)
        self._enforcement = enforce(
            cpu_milli=spec.resources.cpu_milli,
            memory_bytes=spec.resources.memory_bytes,
            cluster=settings.run_dir.name,
            agent=f"{order.tenant}-{spec.agent_id}-g{order.generation}",
            on_breach=end_over_limit,
        )
        self._server: ChannelServer | None = None
        self._port = 0

    async def listen(self, agent_key: bytes) -> None:
        """Take calls whose grants are made with `agent_key`."""
        order, settings = self._order, self._order.settings
        self._server = ChannelServer(
            self._answer,
            verifier=GrantVerifier(
                agent_key, tenant=order.tenant, agent=self._agent_id, generation=order.generation, clock=self._books.clock
            ),
            max_streams=settings.queue_limit,
            max_frame=settings.max_body_bytes * 4,
            on_refusal=self._books.refused_call,
        )
        self._port = await self._server.start(settings.host)
        settle(collect=False)

    @property
    def calls(self) -> int:
        """Calls under way, with those that are not admitted yet."""
        return self._server.running if self._server is not None else 0

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0 while one runs."""
        return self._books.idle_s

    def address(self) -> dict[str, Any]:
        """Return where this agent answers."""
        return {"host": self._order.settings.host, "port": self._port}

    def status(self) -> dict[str, Any]:
        """Return this agent's address and condition as JSON values."""
        return {
            "state": "live",
            "agent_id": self._agent_id,
            "tenant": self._order.tenant,
            "generation": self._order.generation,
            **self.address(),
            "pid": os.getpid(),
            "running": self._books.running,
            "idle_s": round(self.idle_s, 3),
            "enforcement": self._enforcement.report.to_dict(),
        }

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, wait for running ones, and close the journal."""
        if self._server is not None:
            await self._server.drain(timeout_s)
            await self._server.close()
        await self._brain.close()
        self._enforcement.close()
        self._books.close()

    async def _answer(self, incoming: IncomingCall) -> bytes:
        order = CallOrder.from_bytes(incoming.payload)
        entry = CallBooks(self._books, order)
        entry.admit()
        with bind(request_id=order.request_id, tenant=self._order.tenant, agent=self._agent_id, trace_id=order.trace_id):
            try:
                text = await self._think(entry, incoming)
            except BaseException as error:
                entry.settle(outcome_of(error, past_deadline=entry.elapsed_us >= incoming.deadline_s * 1_000_000))
                raise
        usage = entry.settle(Outcome.OK)
        return CallAnswer(text, entry.meter.finish_reason, entry.meter.model, usage).to_bytes()

    async def _think(self, entry: CallBooks, incoming: IncomingCall) -> str:
        if not incoming.stream:
            return await self._brain.run(entry.call, entry.meter)
        async with _ChunkPump(incoming) as pump:
            async for piece in self._brain.stream(entry.call, entry.meter):
                await pump.put(piece)
        return ""


class _ChunkPump:
    """Sends a stream's text while the model goes on: what comes in during one send leaves together in the next."""

    def __init__(self, incoming: IncomingCall) -> None:
        self._incoming = incoming
        self._held = bytearray()
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._closing = False
        self._task = asyncio.ensure_future(self._pump())

    async def put(self, text: str) -> None:
        """Add text; waits while more than UNSENT_BYTES are unsent; raises what sending raised."""
        self._held += text.encode()
        self._wake.set()
        while len(self._held) > UNSENT_BYTES and not self._task.done():
            self._sent.clear()
            await self._sent.wait()
        if self._task.done():
            await self._task

    async def _pump(self) -> None:
        try:
            while not (self._closing and not self._held):
                await self._wake.wait()
                self._wake.clear()
                if self._held:
                    piece = bytes(self._held)
                    self._held.clear()
                    await self._incoming.send_chunk(piece)
                    self._sent.set()
        finally:
            self._sent.set()

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
