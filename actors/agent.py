"""The process of an agent: a Ray actor that is one agent after the other, all of one tenant, each under its own generation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from actors.agent_books import AgentBooks
from actors.call_handler import CallHandler
from actors.channel import ChannelServer
from actors.heap import Leavings, settle
from actors.peers import PeerInvoker
from actors.start_order import StartOrder
from cluster.clock import SystemClock
from cluster.errors import IllegalTransitionError
from cluster.identity.grants import GrantVerifier
from cluster.journal.writer import JournalWriter
from cluster.telemetry import tracing
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics


class AgentActor:
    """The process of one agent generation at a time. Ray starts and supervises it; calls come over its own socket."""

    def __init__(self, order: bytes) -> None:
        """Begin to become the agent that `order` names; `start` waits for it."""
        self._agent: LiveAgent | None = None
        self._leavings: Leavings | None = None
        # Of the last governor that watches; those of dead ones would hold places of this actor for ever.
        self._watched = asyncio.Event()
        # Before there is an agent, because what is set aside is never freed.
        settle(collect=False)
        # On a thread, so that it goes on while Ray tells everybody that this actor is there.
        thread = ThreadPoolExecutor(1, thread_name_prefix="start")
        self._built: Future[LiveAgent] | None = thread.submit(LiveAgent, StartOrder.from_bytes(order))
        thread.shutdown(wait=False)

    async def start(self, agent_key: bytes) -> bytes:
        """Answer calls whose grants are made with `agent_key`; returns JSON `{"host", "port"}`."""
        if self._built is None:
            raise IllegalTransitionError("This process has been started before.")
        agent = await asyncio.wrap_future(self._built)
        self._built = None  # or the agent would stay here when the process is another one's
        await agent.listen(agent_key)
        self._agent, self._leavings = agent, Leavings(agent.declared_bytes)
        return json.dumps(agent.address()).encode()

    async def status(self) -> bytes:
        """Return JSON: address, pid, generation, calls under way, and what is enforced or only advisory."""
        return json.dumps(self._agent.status() if self._agent else {"state": "blank"}).encode()

    async def watch(self, idle_s: float, report_s: float) -> bytes:
        """Return JSON `{"news", "load"}` when there is news, not more often than every `report_s`.

        "idle": no call has run for `idle_s`. "load": calls have come or gone. "watched": somebody else asks, or this process
        is another agent's now. Whoever awaits it learns of this process's end at once, by Ray's error.
        """
        self._watched.set()
        mine = self._watched = asyncio.Event()
        agent = self._agent
        while agent is not None and agent is self._agent:
            seen, left_s = agent.calls_so_far, idle_s - agent.idle_s
            if left_s <= 0:
                return _news("idle", agent)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(mine.wait(), min(left_s, report_s))
                break
            if agent is self._agent and agent.calls_so_far != seen:
                return _news("load", agent)
        return b'{"news": "watched"}'

    async def vacate(self, timeout_s: float) -> str:
        """Close the agent when it has nothing to do, so that this process may become another one.

        Returns "vacant"; "busy", and nothing has changed; or "ended" when so much memory is left behind that the next agent
        would start with too little: then this process ends.
        """
        agent, leavings = self._agent, self._leavings
        if agent is None or leavings is None or agent.calls or agent.idle_s <= 0:
            return "busy"
        self._agent = None
        self._watched.set()
        try:
            await agent.drain(timeout_s)
        except BaseException:
            self._exit()
            raise
        del agent
        if not await asyncio.to_thread(leavings.few):
            self._exit()
            return "ended"
        return "vacant"

    async def rebind(self, order: bytes, agent_key: bytes) -> bytes:
        """Become the agent that `order` names; returns what `start` returns. A failure ends the process."""
        if self._agent is not None:
            raise IllegalTransitionError("This process is another agent's, and was not vacated.")
        try:
            agent = await asyncio.to_thread(LiveAgent, StartOrder.from_bytes(order))
            await agent.listen(agent_key)
        except BaseException:
            self._exit()
            raise
        self._agent = agent
        return json.dumps(agent.address()).encode()

    async def drain(self, timeout_s: float, only_idle: bool = False) -> bool:
        """Refuse new calls, let running ones end for at most `timeout_s`, close the journal and exit.

        With `only_idle` nothing happens while a call runs. Returns whether the process ends.
        """
        if self._agent is not None:
            if only_idle and self._agent.calls:
                return False
            await self._agent.drain(timeout_s)
        self._exit()
        return True

    @staticmethod
    def _exit() -> None:
        threading.Timer(0.05, os._exit, (0,)).start()  # after the answer has left


def _news(news: str, agent: LiveAgent) -> bytes:
    return json.dumps({"news": news, "load": agent.load()}).encode()


class LiveAgent:
    """What answers calls, once the process knows who it is."""

    def __init__(self, order: StartOrder) -> None:
        """Open the journal, build the brain and enforce what was declared."""
        from cluster import wiring
        from cluster.agents.enforcement import enforce

        settings, spec = order.settings, order.record.spec
        configure_logging("agent", level=settings.log_level, directory=settings.log_dir)
        metrics = Metrics.of_process(settings.metrics_dir, "agent")
        tracing.configure_tracing("agent", settings, metrics.spans_dropped)
        clock = SystemClock()
        journal = JournalWriter(
            settings.journal_dir, order.writer_id, order.generation, clock=clock, sync_ms=settings.journal_sync_ms
        )
        books = AgentBooks(order, journal, metrics, clock, wiring.journal_gate(settings))

        def end_over_limit(held: int, allowed: int) -> None:
            books.over_limit(f"held {held} bytes of {allowed} allowed")
            os.kill(os.getpid(), signal.SIGKILL)  # at once: neighbours must not pay for it

        self._order = order
        self._agent_id = str(spec.agent_id)
        self._books = books
        self._peers = PeerInvoker(order.tenant, self._agent_id)
        self._brain = wiring.build_brain(
            settings, order.record, egress_hosts=order.egress_hosts, on_refusal=books.refused_tool, peers=self._peers
        )
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

    @property
    def calls(self) -> int:
        """Calls under way, with those that are not admitted yet."""
        return self._server.running if self._server is not None else 0

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0 while one runs."""
        return self._books.idle_s

    @property
    def declared_bytes(self) -> int:
        """The memory that this agent may use."""
        return self._order.record.spec.resources.memory_bytes

    @property
    def calls_so_far(self) -> tuple[int, int]:
        """Calls under way, and calls that have ended: no call comes or goes without changing it."""
        return self.calls, self._books.ended

    def load(self) -> dict[str, Any]:
        """Return what it has to do."""
        return {"calls": self.calls, "idle_s": self.idle_s, "p95_s": self._books.p95_s}

    def address(self) -> dict[str, Any]:
        """Return where this agent answers; the node is empty for the one that `up` started."""
        return {"host": self._order.settings.host, "port": self._port, "node": self._order.settings.node}

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
        await self._peers.aclose()
        self._enforcement.close()
        self._books.close()
