"""Runs of agents that are real but for Ray: their channel, their brain, their tools, their journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from langchain_core.tools import BaseTool

from actors.agent_books import AgentBooks
from actors.call_handler import CallHandler
from actors.directory import Directory
from actors.invoker import Invoker
from actors.peers import PeerInvoker
from actors.resolved import Resolved
from actors.start_order import StartOrder
from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.delegation import ask_agent_tool
from cluster.agents.egress import EgressPolicy
from cluster.agents.record import AgentRecord
from cluster.agents.scripted_model import ScriptedModel
from cluster.agents.spec import AgentSpec, Resources
from cluster.clock import SystemClock
from cluster.errors import UnavailableError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.fact import Stream
from cluster.journal.usage_event import Outcome, UsageEvent
from cluster.journal.writer import JournalWriter
from cluster.runs.run import RunStatus
from cluster.runs.sqlite_run_store import SqliteRunStore
from cluster.runs.webhook import WebhookSecrets
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.runs import RunRequest, Runs
from tests.contract.channel.peers import Agent, an_agent, until
from tests.gates import open_gate
from tests.lake_samples import everything

ACME = Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset(Scope))
Steps = list[dict[str, Any]]


class Governed:
    """Governance as far as a directory asks it: where each agent answers. An agent's name is also its journal's."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}

    async def call(self, method: str, principal: str, agent_id: str, gone: int) -> dict[str, Any]:
        assert method == "resolve"
        agent = self.agents[agent_id]
        expires_us = int(time.time() * 1e6) + 3_600_000_000
        grant = agent.grant
        found = Resolved("127.0.0.1", agent.port, 1, grant.ticket_bytes, grant.session_key, expires_us)
        return {"replicas": [found.to_json()]}


class Reluctant(Brain):
    """A brain that takes as long to stop as a test wants."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stopping, self.may_stop = asyncio.Event(), asyncio.Event()

    async def run(self, call: Call, meter: CallMeter) -> str:
        try:
            return await super().run(call, meter)
        finally:
            self.stopping.set()
            await self.may_stop.wait()


class World:
    """A gateway's runs over agents that serve here."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.governed = Governed()
        self.brains: dict[str, Reluctant] = {}

    def invoker(self) -> Invoker:
        return Invoker(Directory(cast("Any", self.governed)), places=64)

    @asynccontextmanager
    async def agent(
        self, name: str, steps: Steps | None = None, tools: list[BaseTool] | None = None
    ) -> AsyncIterator[AgentBooks]:
        resources = Resources(100, 64 << 20)
        spec = AgentSpec(AgentId(name), "x", (), "scripted:steps", "", (), resources, (), "low", (), 10, 1)
        record = AgentRecord(TenantId("acme"), ProjectId("default"), spec, (), "d", "r", "p", "me", 1)
        settings, clock = Settings(home=self.home), SystemClock()
        model = ScriptedModel(script="steps", steps=steps)
        brain = self.brains[name] = Reluctant(model, tools or [], instructions="", max_iterations=10, model_name="scripted:steps")
        with JournalWriter(self.home / "journal", f"agent.acme.{name}", 1, clock=clock) as journal:
            metrics, gate = Metrics(settings.metrics_dir, "agent"), open_gate(self.home / "journal")
            books = AgentBooks(StartOrder(settings, "acme", record, 1), journal, metrics, clock, gate)
            async with an_agent(CallHandler(books, brain)) as agent:
                self.governed.agents[name] = agent
                yield books

    @asynccontextmanager
    async def runs(self, name: str = "a", living: bool = True) -> AsyncIterator[Runs]:
        invoker = self.invoker()
        runs = Runs(
            SqliteRunStore(self.home / "runs.sqlite"),
            invoker,
            owner=f"gateway.{name}/e1",
            is_alive=lambda _: living,
            at_once=8,
            clock=SystemClock(),
            egress=EgressPolicy(any_public_host=True),
            secrets=WebhookSecrets(self.home / "webhooks"),
        )
        runs.begin()
        try:
            yield runs
        finally:
            await runs.aclose()
            await invoker.aclose()

    def bills(self) -> dict[str, list[UsageEvent]]:
        """Return the last facts of calls by agent, as they are on disk now."""
        rows = [UsageEvent.from_body(f.body) for f in everything(self.home / "journal") if f.stream == Stream.USAGE]
        return {row.agent_id: [r for r in rows if r.agent_id == row.agent_id] for row in rows}


def asked(agent_id: str, text: str = "x") -> RunRequest:
    return RunRequest("native", agent_id, [{"role": "user", "content": text}], deadline_s=60.0)


async def test_a_run_is_billed_by_its_own_id(tmp_path: Path) -> None:
    """The one usage fact of its call has the run's id, and the run has what was said and used."""
    world = World(tmp_path)
    async with world.agent("planner", [{"stream": ["well ", "done"]}]), world.runs() as runs:
        run = await runs.start(ACME, asked("planner"))
        ended = await runs.wait(ACME, run.run_id)
        assert (ended.status, ended.answer) == (RunStatus.SUCCESS, "well done")
        (bill,) = world.bills()["planner"]
        assert (bill.invocation_id, bill.outcome) == (run.run_id, Outcome.OK)
        assert bill.tokens_output == ended.usage["tokens_output"] > 0


async def test_threat_79_when_a_cancel_returns_everything_has_stopped_and_is_billed_once(tmp_path: Path) -> None:
    """Model, tool and child: in the moment in which cancel returns none runs, and each bill is on disk, once."""
    world = World(tmp_path)
    peers = PeerInvoker("acme", "lead")
    peers._invoker = world.invoker()
    ask = {"call_tool": {"name": "ask_agent", "args": {"agent_id": "clerk", "question": "how much?"}}}
    async with AsyncExitStack() as stack:
        clerk = await stack.enter_async_context(world.agent("clerk", [{"sleep_s": 3_600}]))
        lead = await stack.enter_async_context(world.agent("lead", [ask, {"say": "{tool}"}], [ask_agent_tool(peers)]))
        runs = await stack.enter_async_context(world.runs())
        run = await runs.start(ACME, asked("lead"))
        await until(lambda: clerk.running == 1)
        cancelling = asyncio.ensure_future(runs.cancel(ACME, run.run_id))
        await world.brains["clerk"].stopping.wait()
        for _ in range(100):
            assert (await runs.get(ACME, run.run_id)).status is RunStatus.RUNNING
        world.brains["clerk"].may_stop.set()
        cancelled = await cancelling
        assert (lead.running, clerk.running) == (0, 0)
        assert cancelled.status is RunStatus.CANCELLED
        (parent,), (child,) = world.bills()["lead"], world.bills()["clerk"]
        assert (parent.invocation_id, parent.outcome, parent.billable) == (run.run_id, Outcome.CANCELLED, True)
        assert (child.parent_invocation_id, child.outcome, child.billable) == (run.run_id, Outcome.CANCELLED, True)
        assert parent.tool_calls == 1
        assert await runs.cancel(ACME, run.run_id) == cancelled
        assert {name: len(rows) for name, rows in world.bills().items()} == {"lead": 1, "clerk": 1}
        await peers.aclose()


async def test_threat_79_whoever_leaves_a_run_that_is_for_them_alone_ends_its_work(tmp_path: Path) -> None:
    """The work stops and is billed once; a run in the background goes on as if nobody had been there."""
    world = World(tmp_path)
    async with world.agent("planner", [{"sleep_s": 3_600}]) as books, world.runs() as runs:
        for cancel in (False, True):
            run = await runs.start(ACME, asked("planner"))
            follower = asyncio.ensure_future(runs.wait(ACME, run.run_id, cancel_on_disconnect=cancel))
            await until(lambda: books.running == 1)
            follower.cancel()
            await asyncio.wait((follower,))
            if not cancel:
                assert not (await runs.get(ACME, run.run_id)).cancel_requested
                await runs.cancel(ACME, run.run_id)
            assert (await runs.wait(ACME, run.run_id)).status is RunStatus.CANCELLED
            assert books.running == 0
        assert [bill.outcome for bill in world.bills()["planner"]] == [Outcome.CANCELLED] * 2


async def test_a_gateway_that_dies_leaves_no_work_and_no_second_bill(tmp_path: Path) -> None:
    """Its connections are gone, so the agent stops and bills; another gateway says that the run is lost, and runs nothing."""
    world = World(tmp_path)
    async with world.agent("planner", [{"sleep_s": 3_600}]) as books:
        async with world.runs("a") as dying:
            run = await dying.start(ACME, asked("planner"))
            await until(lambda: books.running == 1)
            # Not a word more from it, as after kill -9.
            dying._store.end = _refuse  # type: ignore[method-assign]
        await until(lambda: books.running == 0)
        async with world.runs("b", living=False) as runs:
            lost = await runs.wait(ACME, run.run_id)
            assert (lost.status, lost.error["code"]) == (RunStatus.ERROR, "run_lost")
        (bill,) = world.bills()["planner"]
        assert (bill.invocation_id, bill.outcome) == (run.run_id, Outcome.CANCELLED)


def _refuse(*_: Any, **__: Any) -> Any:
    raise UnavailableError("It is dead.")
