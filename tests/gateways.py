"""A gateway and governance in one process: the real ones, with their files, and nothing of Ray between or below them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from starlette.types import ASGIApp

from actors import agent_processes, gangs, governance
from actors.directory import Directory
from actors.governance import GovernanceActor
from actors.invoker import Invoker
from actors.room import Account
from cluster import wiring
from cluster.agents.spec import Resources
from cluster.clock import SystemClock
from cluster.errors import from_problem
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import create_app
from serve_apps.edge import Edge
from serve_apps.idempotency import build_idempotency
from serve_apps.runs import build_runs
from tests.gates import open_gate


class InProcess:
    """Governance's actor without Ray between: its answers cross as the same JSON bytes."""

    def __init__(self, actor: GovernanceActor) -> None:
        self._actor = actor

    async def call(self, method: str, *arguments: object, timeout_s: float = 30.0) -> Any:
        document = json.loads(await getattr(self._actor, method)(*arguments))
        if "problem" in document:
            raise from_problem(document["problem"])
        return document["ok"]


class NoReconciler:
    def __init__(self, *_: object) -> None:
        """There is no Ray to compare with."""

    async def look_for_ever(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def gateway(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ASGIApp]:
    """Yield the application of a fresh home, which has its first API key; no agent of it can wake."""
    settings.secret_dir.mkdir(parents=True)
    (settings.secret_dir / "master-key").write_text("ab" * 32)
    wiring.ensure_first_api_key(settings)
    wiring.sign_policies(settings)
    # Without its thread for ever: one that outlives a test may collect what only the test's own thread may drop.
    monkeypatch.setattr(Metrics, "of_process", Metrics)
    monkeypatch.setattr(agent_processes, "names", lambda prefix: set())
    monkeypatch.setattr(agent_processes, "nodes_of_ray", list)
    monkeypatch.setattr(agent_processes, "account_of_ray", lambda: Account(Resources(0, 0), Resources(0, 0)))
    monkeypatch.setattr(governance, "nodes_of_ray", list)
    monkeypatch.setattr(gangs, "group_names", lambda prefix: set())
    monkeypatch.setattr(governance, "configure_logging", lambda *a, **k: None)
    monkeypatch.setattr(governance, "Reconciler", NoReconciler)
    actor, metrics = GovernanceActor(settings.to_json()), Metrics(settings.metrics_dir, "gateway")
    gate = open_gate(settings.journal_dir)
    local = cast("Any", InProcess(actor))
    invoker = Invoker(Directory(local, metrics), places=settings.queue_limit, gate=gate, metrics=metrics)
    journal = wiring.open_journal(settings, "gateway.test")
    runs, idempotency = build_runs(settings, invoker, journal), build_idempotency(settings, journal)
    edge = Edge(
        settings,
        authenticator=wiring.build_authenticator(settings),
        governance=local,
        invoker=invoker,
        journal=journal,
        gate=gate,
        metrics=metrics,
        clock=SystemClock(),
        runs=runs,
        idempotency=idempotency,
    )
    try:
        yield create_app(edge)
    finally:
        await runs.aclose()
        await idempotency.aclose()
        edge.close()
        await actor.drain_all()
        actor._threads.shutdown()
        actor._registering.shutdown()
        # A policy engine that the garbage collector finds on another thread complains.
        gc.collect()
