"""A gateway whose agents answer in its own process: the real brain behind the real wire, without a socket between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from actors.invoker import Invoker
from actors.leases import Leases
from actors.wire import CallAnswer, CallOrder, Usage
from cluster import wiring
from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.models import build_model
from cluster.agents.sqlite_checkpointer import SqliteCheckpointStore
from cluster.clock import SystemClock
from cluster.errors import NotFoundError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import Application, create_app
from serve_apps.edge import Edge
from serve_apps.runs import build_runs
from tests.gates import open_gate

AGENT = {
    "agent_id": "planner",
    "agent_type": "planner",
    "capabilities": ["conversation"],
    "created_at": "2026-01-02T03:04:05+00:00",
}
_FIELDS = [name for name in Call.__dataclass_fields__ if name in CallOrder.__dataclass_fields__]


class Agents:
    """One agent, "planner", and everything that a gateway asks of others about it."""

    def __init__(self, folder: Path) -> None:
        model = build_model("scripted:steps")
        store = SqliteCheckpointStore(folder / "conversations.sqlite")
        self.brain = Brain(model, [], instructions="", max_iterations=5, model_name="scripted:steps", checkpointer=store)
        # As a key says it; what a test takes away is missed.
        self.scopes = frozenset(Scope)

    def authenticate(self, _: str) -> Principal:
        return Principal(TenantId("acme"), ProjectId("default"), "key:1", self.scopes)

    async def call(self, *arguments: Any, deadline_s: float = 0, conversation: str | None = None, **_: Any) -> Any:
        """Answer a call of the agent, or a question to governance: both go by this name."""
        if isinstance(arguments[0], Principal):
            _, agent_id, payload = arguments
            return await self._answer(agent_id, payload)
        method, _, agent_id = arguments[:3]
        if method == "list":
            return {"agents": [AGENT], "next": ""}
        _check(agent_id)
        return AGENT

    async def stream(self, _: Principal, agent_id: str, payload: bytes, **options: Any) -> Stream:
        _check(agent_id)
        call, meter = _call(payload), CallMeter()
        stream = Stream(self.brain.stream(call, meter), meter)
        await stream.begin()
        return stream

    async def aclose(self) -> None:
        await self.brain.close()

    async def _answer(self, agent_id: str, payload: bytes) -> bytes:
        _check(agent_id)
        meter = CallMeter()
        return _result(await self.brain.run(_call(payload), meter), meter)

    def append(self, fact: object) -> None:
        """Keep a refusal; nobody reads it here."""


class Stream:
    """An agent's streamed answer, piece by piece as the model says it."""

    def __init__(self, pieces: Any, meter: CallMeter) -> None:
        self._pieces, self._meter = pieces, meter
        self._next: str | None = None
        self.deadline_at = asyncio.get_running_loop().time() + 60
        self.ended = False

    async def begin(self) -> None:
        self._next = await anext(self._pieces, None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := self._next) is not None:
            yield piece.encode()
            self._next = await anext(self._pieces, None)
        self.ended = True

    @property
    def result(self) -> bytes:
        return _result("", self._meter)

    async def aclose(self) -> None:
        await self._pieces.aclose()

    async def stopped(self) -> None:
        """Return at once: closing it has stopped the work."""


@asynccontextmanager
async def answering(folder: Path, leases: Leases | None = None) -> AsyncIterator[tuple[Application, Agents]]:
    """Yield a gateway, and the agent that answers it; with `leases` calls are paid for."""
    settings, agents = Settings(home=folder), Agents(folder)
    local = cast("Any", agents)
    gate, metrics = open_gate(folder / "journal"), Metrics(folder / "metrics", "gateway")
    invoker = Invoker(local, places=64, gate=gate, leases=leases)
    journal = wiring.open_journal(settings, "gateway.test")
    runs = build_runs(settings, invoker, journal)
    edge = Edge(
        settings,
        authenticator=local,
        governance=local,
        invoker=invoker,
        journal=local,
        gate=gate,
        metrics=metrics,
        clock=SystemClock(),
        runs=runs,
        leases=leases,
    )
    try:
        yield create_app(edge), agents
    finally:
        await runs.aclose()
        await invoker.aclose()
        journal.close()


def _check(agent_id: str) -> None:
    if agent_id != AGENT["agent_id"]:
        raise NotFoundError(f"There is no agent {agent_id}.")


def _call(payload: bytes) -> Call:
    order = CallOrder.from_bytes(payload)
    return Call(**{name: getattr(order, name) for name in _FIELDS})


def _result(text: str, meter: CallMeter) -> bytes:
    usage = Usage(tokens_input_uncached=meter.tokens_input_uncached, tokens_output=meter.tokens_output)
    spent = (meter.tokens_input_uncached + meter.tokens_output, 0)
    return CallAnswer(text, meter.finish_reason, meter.model, usage, meter.client_calls, spent).to_bytes()
