"""Runs over two gateways that share a store: done once, heard by all, ended when told, lost when their gateway dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from actors.invoker import Invocation
from actors.wire import CallAnswer, Usage
from cluster.agents.egress import EgressPolicy
from cluster.clock import SystemClock
from cluster.errors import AgentFailedError, InternalError, NotFoundError, OverloadedError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import Run, RunEvent, RunStatus, ThreadBusyError
from cluster.runs.sqlite_run_store import SqliteRunStore
from cluster.runs.webhook import WebhookSecrets
from serve_apps.run_records import RunRecords
from serve_apps.runs import RunRequest, Runs

ACME = Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset(Scope))
RIVAL = Principal(TenantId("rival"), ProjectId("default"), "key:2", frozenset(Scope))


class Agent:
    """An invoker whose agent says what a test tells it to, piece by piece, and notes how each call ended."""

    def __init__(self) -> None:
        self.calls: list[Invocation] = []
        # What it says next; None ends the answer, an error fails it.
        self.says: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.refuse: list[Exception] = []
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.stopping = asyncio.Event()
        self.stopped = 0

    async def open(self, invocation: Invocation) -> AgentStream:
        if self.refuse:
            raise self.refuse.pop(0)
        self.calls.append(invocation)
        return AgentStream(self)


class AgentStream:
    answer = CallAnswer("", "stop", "scripted:ok", Usage(tokens_output=3))

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[str]:
        while (said := await self._agent.says.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said
        self._ended = True

    async def aclose(self) -> None:
        if not self._ended:
            self._agent.stopping.set()
            await self._agent.may_stop.wait()
            self._agent.stopped += 1


class Box:
    """Gateways of one box, by name; a dead one's runs are there for the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.agent = Agent()
        self.living: dict[str, Runs] = {}

    def gateway(self, name: str, at_once: int = 8) -> Runs:
        store = SqliteRunStore(self.path)
        runs = Runs(
            store,
            cast("Any", self.agent),
            owner=f"gateway.{name}/e1",
            is_alive=lambda owner: owner in self.living,
            at_once=at_once,
            clock=SystemClock(),
            egress=EgressPolicy(any_public_host=True),
            secrets=WebhookSecrets(self.path.parent / "webhooks"),
        )
        self.living[f"gateway.{name}/e1"] = runs
        runs.begin()
        return runs

    async def kill(self, name: str) -> None:
        """End a gateway as kill -9 does: none of its tasks says anything more, and its lock is free."""
        runs = self.living.pop(f"gateway.{name}/e1")
        tasks = [*runs._tasks, *runs._carrier._running.values()]
        runs._carrier._records = cast("RunRecords", None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        runs._records.close()


@asynccontextmanager
async def box(path: Path) -> AsyncIterator[Box]:
    box = Box(path / "runs.sqlite")
    try:
        yield box
    finally:
        for runs in box.living.values():
            await runs.aclose()


def asked(**more: Any) -> RunRequest:
    fields: dict[str, Any] = {"kind": "native", "agent_id": "planner", "messages": [{"role": "user", "content": "x"}]}
    return RunRequest(**({"deadline_s": 30.0} | fields | more))


async def began(runs: Runs, run: Run) -> None:
    with runs._records.watch(run.run_id) as changed:
        while (await runs.get(ACME, run.run_id)).status is RunStatus.PENDING:
            await changed.wait()
            changed.clear()


async def heard(runs: Runs, run: Run, after: int = 0) -> list[RunEvent]:
    return [event async for event in runs.events(ACME, run.run_id, after)]


async def test_a_run_is_done_and_every_gateway_tells_of_it(tmp_path: Path) -> None:
    """The call is made once, as whoever asked; its text and its end are the same at each gateway."""
    async with box(tmp_path) as b:
        one, two = b.gateway("a"), b.gateway("b")
        run = await one.start(ACME, asked(thread_id="t", options={"temperature": 0.5}, request_id="r-1"))
        assert (run.status, await two.get(ACME, run.run_id)) == (RunStatus.PENDING, run)
        for said in ("he", "llo", None):
            b.agent.says.put_nowait(said)
        done = await two.wait(ACME, run.run_id)
        assert (done.status, done.answer, done.finish_reason, done.usage["tokens_output"]) == ("success", "hello", "stop", 3)
        (call,) = b.agent.calls
        assert (call.principal, call.conversation_id, call.temperature, call.request_id) == (ACME, "t", 0.5, "r-1")
        assert call.invocation_id == run.run_id
        events = await heard(two, run)
        assert "".join(e.text for e in events) == "hello"
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert events[-1].run == done == await one.get(ACME, run.run_id)


async def test_whoever_comes_back_misses_nothing_and_hears_nothing_twice(tmp_path: Path) -> None:
    """Events go on after the number that was seen last, live, at whichever gateway."""
    async with box(tmp_path) as b:
        one, two = b.gateway("a"), b.gateway("b")
        run = await one.start(ACME, asked())
        first = one.events(ACME, run.run_id)
        b.agent.says.put_nowait("one")
        seen = await anext(first)
        await first.aclose()
        again = two.events(ACME, run.run_id, seen.seq)
        b.agent.says.put_nowait("two")
        assert (seen.text, (await anext(again)).text) == ("one", "two")
        b.agent.says.put_nowait(None)
        last = await anext(again)
        assert last.run is not None
        assert last.run.status is RunStatus.SUCCESS
        assert await heard(one, run, last.seq) == []
        assert await heard(one, run, last.seq - 1) == [last]


async def test_a_cancel_returns_when_the_agent_has_stopped(tmp_path: Path) -> None:
    """Not before, and from whichever gateway it is asked; the run ends as cancelled, with the text that came."""
    async with box(tmp_path) as b:
        one, two = b.gateway("a"), b.gateway("b")
        run = await one.start(ACME, asked())
        b.agent.says.put_nowait("so far")
        await anext(one.events(ACME, run.run_id))
        b.agent.may_stop.clear()
        cancelling = asyncio.ensure_future(two.cancel(ACME, run.run_id))
        again = asyncio.ensure_future(one.cancel(ACME, run.run_id))
        await b.agent.stopping.wait()
        assert (await two.get(ACME, run.run_id)).status is RunStatus.RUNNING
        assert (cancelling.done(), b.agent.stopped) == (False, 0)
        b.agent.may_stop.set()
        ended = await cancelling
        assert (ended.status, ended.answer, ended.error["code"], b.agent.stopped) == ("cancelled", "so far", "cancelled", 1)
        assert await again == ended
        assert (await one.cancel(ACME, run.run_id)) == ended


async def test_what_ran_in_a_gateway_that_died_is_lost_and_what_waited_is_done(tmp_path: Path) -> None:
    """Nothing is ever done twice, and whoever waits hears of it."""
    async with box(tmp_path) as b:
        one = b.gateway("a", at_once=1)
        ran, waited = await one.start(ACME, asked()), await one.start(ACME, asked())
        b.agent.says.put_nowait("half")
        await anext(one.events(ACME, ran.run_id))
        two = b.gateway("b")
        waiting = asyncio.ensure_future(two.wait(ACME, ran.run_id))
        await b.kill("a")
        for said in ("whole", None):
            b.agent.says.put_nowait(said)
        lost, done = await waiting, await two.wait(ACME, waited.run_id)
        assert (lost.status, lost.error["code"], lost.answer) == ("error", "run_lost", "half")
        assert (done.status, done.answer, len(b.agent.calls)) == ("success", "whole", 2)


async def test_a_run_ends_with_the_error_of_its_agent(tmp_path: Path) -> None:
    """As a problem document, with the text before it; a fault of ours says no more than that it is one."""
    async with box(tmp_path) as b:
        runs = b.gateway("a")
        for error, code in ((AgentFailedError("It raised."), "agent_failed"), (ValueError("secret"), "internal")):
            run = await runs.start(ACME, asked())
            b.agent.says.put_nowait("text")
            b.agent.says.put_nowait(error)
            ended = await runs.wait(ACME, run.run_id)
            assert (ended.status, ended.answer, ended.error["code"]) == ("error", "text", code)
            assert "secret" not in str(ended.error)


async def test_a_run_waits_for_a_full_cluster(tmp_path: Path) -> None:
    """Nothing was started, so it is tried again until its time is up."""
    async with box(tmp_path) as b:
        runs = b.gateway("a")
        b.agent.refuse = [OverloadedError("Full.", retry_after_s=0.001)]
        b.agent.says.put_nowait(None)
        run = await runs.start(ACME, asked())
        assert (await runs.wait(ACME, run.run_id)).status is RunStatus.SUCCESS
        b.agent.refuse = [OverloadedError("Full.", retry_after_s=9)]
        run = await runs.start(ACME, asked(deadline_s=0.001))
        assert (await runs.wait(ACME, run.run_id)).error["code"] == "deadline_exceeded"


async def test_leaving_cancels_only_what_was_to_go_on_for_nobody(tmp_path: Path) -> None:
    """By what the run says, or by what whoever waits says."""
    async with box(tmp_path) as b:
        runs = b.gateway("a")
        for of_run, of_waiter, cancelled in ((True, None, True), (False, None, False), (True, False, False), (False, True, True)):
            run = await runs.start(ACME, asked(cancel_on_disconnect=of_run))
            await began(runs, run)
            waiting = asyncio.ensure_future(runs.wait(ACME, run.run_id, cancel_on_disconnect=of_waiter))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait((waiting,))
            assert bool(runs._cancelling) is (of_waiter is not False)
            await asyncio.gather(*runs._cancelling)
            assert (await runs.get(ACME, run.run_id)).status == ("cancelled" if cancelled else "running")
            await runs.cancel(ACME, run.run_id)


async def test_a_busy_thread_is_treated_as_asked(tmp_path: Path) -> None:
    """Refused, or first the others are ended; turns of one thread never overlap."""
    async with box(tmp_path) as b:
        one, two = b.gateway("a"), b.gateway("b")
        first = await one.start(ACME, asked(thread_id="t"))
        await began(one, first)
        with pytest.raises(ThreadBusyError):
            await two.start(ACME, asked(thread_id="t", multitask="reject"))
        b.agent.may_stop.clear()
        second = await two.start(ACME, asked(thread_id="t", multitask="interrupt"))
        await b.agent.stopping.wait()
        assert (await two.get(ACME, second.run_id)).status is RunStatus.PENDING
        b.agent.may_stop.set()
        assert (await two.wait(ACME, first.run_id)).status is RunStatus.CANCELLED
        await began(two, second)
        third = await one.start(ACME, asked(thread_id="t", multitask="rollback"))
        await began(one, third)
        with pytest.raises(NotFoundError):
            await one.get(ACME, second.run_id)
        b.agent.says.put_nowait(None)
        assert (await two.wait(ACME, third.run_id)).status is RunStatus.SUCCESS


async def test_foreign_runs_are_not_found(tmp_path: Path) -> None:
    """Nothing can be read, waited for or ended across tenants."""
    async with box(tmp_path) as b:
        runs = b.gateway("a")
        run = await runs.start(ACME, asked())
        for attempt in (runs.get, runs.wait, runs.cancel, runs.delete):
            with pytest.raises(NotFoundError):
                await attempt(RIVAL, run.run_id)
        with pytest.raises(NotFoundError):
            await anext(runs.events(RIVAL, run.run_id))
        assert await runs.list_runs(RIVAL, "native") == []
        assert not (await runs.get(ACME, run.run_id)).cancel_requested


async def test_a_gateway_that_ends_finishes_what_it_carries(tmp_path: Path) -> None:
    """A drain waits for what runs and begins nothing more."""
    async with box(tmp_path) as b:
        runs = b.gateway("a")
        run = await runs.start(ACME, asked())
        await began(runs, run)
        draining = asyncio.ensure_future(runs.drain())
        later = await runs.start(ACME, asked())
        b.agent.says.put_nowait(None)
        await draining
        assert (await runs.get(ACME, run.run_id)).status is RunStatus.SUCCESS
        assert (await runs.get(ACME, later.run_id)).status is RunStatus.PENDING


async def test_an_option_that_no_call_has_is_a_fault(tmp_path: Path) -> None:
    """A door that translates wrongly is found out before anything is kept."""
    async with box(tmp_path) as b:
        with pytest.raises(InternalError):
            await b.gateway("a").start(ACME, asked(options={"temprature": 1}))


async def test_threat_85_a_run_that_begins_as_its_gateway_drains_is_finished_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: RunCarrier._beginning. It is on record as running: if nobody waited for it, it would be lost."""
    loop, claim, draining = asyncio.get_running_loop(), SqliteRunStore.claim, asyncio.Queue[asyncio.Future[None]]()

    def watched(store: SqliteRunStore, *arguments: Any) -> list[Run]:
        found = claim(store, *arguments)
        if found:
            asyncio.run_coroutine_threadsafe(drain(), loop).result()
        return found

    async def drain() -> None:
        draining.put_nowait(asyncio.ensure_future(runs.drain()))
        await asyncio.sleep(0)

    async with box(tmp_path) as b:
        runs = b.gateway("a")
        monkeypatch.setattr(SqliteRunStore, "claim", watched)
        run = await runs.start(ACME, asked())
        drained = await draining.get()
        b.agent.says.put_nowait("done")
        b.agent.says.put_nowait(None)
        await drained
        assert (await runs.get(ACME, run.run_id)).status is RunStatus.SUCCESS
