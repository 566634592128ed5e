"""A gateway that is killed with its runs and calls under way, as another one of the box finds them: with real locks and files."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.responses import Response

from actors.wire import CallAnswer, Usage
from cluster import wiring
from cluster.errors import SovereignError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import RunStatus
from cluster.settings import Settings
from serve_apps.exchange import Exchange
from serve_apps.idempotency import build_idempotency
from serve_apps.runs import RunRequest, build_runs

ACME = Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset(Scope))
TURN = RunRequest("native", "planner", [{"role": "user", "content": "x"}], deadline_s=60.0, thread_id="t")


class Agent:
    """An invoker whose agent says one piece, and then ends or never does."""

    answer = CallAnswer("", "stop", "scripted:ok", Usage())

    def __init__(self, ends: bool) -> None:
        self.ends = ends
        self.calls: list[str] = []

    async def open(self, invocation: Any) -> Agent:
        self.calls.append(invocation.invocation_id)
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "said"
        if not self.ends:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Nothing is held."""


class Gateway:
    def __init__(self, home: Path, ends: bool) -> None:
        settings = Settings.load(home=home)
        self.journal = wiring.open_journal(settings, wiring.process_writer_id("gateway"))
        self.agent = Agent(ends)
        self.runs = build_runs(settings, cast("Any", self.agent), self.journal)
        self.idempotency = build_idempotency(settings, self.journal)
        self.runs.begin()

    async def call(self, key: str) -> Response:
        """Do a call under an Idempotency-Key; it never ends here if the agent does not."""

        async def answer(_: Request) -> Response:
            if not self.agent.ends:
                print("begun", flush=True)
                await asyncio.Event().wait()
            return Response(b"done")

        scope = {"type": "http", "method": "POST", "path": "/call", "query_string": b"", "headers": [], "server": ("x", 80)}
        exchange = Exchange("r", "", "", idempotency_key=key)
        return await self.idempotency.answer(Request(scope), exchange, ACME, b"{}", answer)

    async def aclose(self) -> None:
        await self.runs.aclose()
        await self.idempotency.aclose()
        self.journal.close()


async def hold(home: Path) -> None:
    """Be a gateway with one run under way, one waiting behind it, and one call; say so, and never end."""
    gateway = Gateway(home, ends=False)
    running, waiting = await gateway.runs.start(ACME, TURN), await gateway.runs.start(ACME, TURN)
    await anext(gateway.runs.events(ACME, running.run_id))
    print(running.run_id, waiting.run_id, flush=True)
    await gateway.call("once")


async def test_what_a_killed_gateway_had_begun_is_lost_and_what_waited_is_done(tmp_path: Path) -> None:
    """While it lives nobody touches its runs; kill -9 lets go of its lock, and nothing that it had begun is done twice."""
    code = f"import asyncio, sys; from pathlib import Path; from {__name__} import hold; asyncio.run(hold(Path(sys.argv[1])))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert killed.stdout is not None
        running, waiting = (await killed.stdout.readline()).decode().split()
        assert await killed.stdout.readline() == b"begun\n"
        gateway = Gateway(tmp_path, ends=True)
        with pytest.raises(SovereignError) as early:
            await gateway.call("once")
        assert early.value.code == "idempotency_in_progress"
        await gateway.runs._carrier._look_after_others()
        assert (await gateway.runs.get(ACME, running)).status is RunStatus.RUNNING
        assert (await gateway.runs.get(ACME, waiting)).status is RunStatus.PENDING
        waiter = asyncio.ensure_future(gateway.runs.wait(ACME, waiting))
    finally:
        killed.kill()
        await killed.wait()
    async with asyncio.timeout(30):
        lost, done = await gateway.runs.wait(ACME, running), await waiter
    assert (lost.status, lost.error["code"], lost.answer) == (RunStatus.ERROR, "run_lost", "said")
    assert (done.status, done.answer, gateway.agent.calls) == (RunStatus.SUCCESS, "said", [waiting])
    with pytest.raises(SovereignError) as unknown:
        await gateway.call("once")
    assert unknown.value.code == "idempotency_outcome_unknown"
    assert (await gateway.call("another")).body == b"done"
    await gateway.aclose()
