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

from actors.agent_books import AgentBooks
from actors.call_handler import CallHandler
from actors.channel import ChannelServer
from actors.heap import settle
from actors.start_order import StartOrder
from cluster.clock import SystemClock
from cluster.identity.grants import GrantVerifier
from cluster.journal.writer import JournalWriter
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics


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
            CallHandler(self._books, self._brain),
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
