"""Imported by every idle worker before it is taken, so that an agent that wakes finds its modules loaded and its paths run.

Ray imports the modules that `RAY_preload_python_modules` names when a worker starts. Importing is most of a cold start;
the first serialisation in a process costs about another 0.3 s, and the first graph and the first call build caches that every
later one uses: so one value is serialised and a few calls are answered here as well, by the scripted model.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from pathlib import Path

from ray import cloudpickle

from actors.heap import settle
from actors.ray_internals import SERIALISER_MODULES

PRELOADED = (
    "uvloop",
    "actors.agent",
    "cluster.agents.brain",
    "cluster.agents.enforcement",
    "cluster.agents.models",
    "cluster.agents.sqlite_checkpointer",
    "cluster.wiring",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "langchain_openai",
    *SERIALISER_MODULES,
)

# The interpreter specialises code that has run a few times, so the first real call finds it fast.
ROUNDS = 5


def warm_up() -> None:
    """Import what agents need, run the serialiser once, and answer a few calls."""
    for name in PRELOADED:
        importlib.import_module(name)
    cloudpickle.dumps(lambda: None)  # type: ignore[no-untyped-call]  # Ray ships no types for it
    asyncio.run(_answer_some())
    _keep_books()
    settle(collect=True)


async def _answer_some() -> None:
    from cluster.agents.brain import Brain
    from cluster.agents.call import Call, CallMeter
    from cluster.agents.catalogue import CATALOGUE, build_tools
    from cluster.agents.models import build_model
    from cluster.wiring import open_sandbox

    tools = build_tools(sorted(CATALOGUE), sandbox=open_sandbox("bubblewrap", probed=True))
    for _ in range(ROUNDS):
        brain = Brain(build_model("scripted:ok"), tools, instructions="", max_iterations=1, model_name="scripted:ok")
        await brain.run(Call("warm-up", [{"role": "user", "content": "ok"}]), CallMeter())
        await brain.close()


def _keep_books() -> None:
    from cluster.journal.fact import Fact, Stream
    from cluster.journal.writer import JournalWriter
    from cluster.telemetry.metrics import Metrics

    with tempfile.TemporaryDirectory(prefix="sovereign-") as folder:
        metrics = Metrics(Path(folder), "warm-up")
        for epoch in range(1, ROUNDS + 1):
            journal = JournalWriter(Path(folder), "warm-up", epoch, sync_ms=1000)
            journal.append(Fact(Stream.AUDIT, {}))
            journal.close()
            metrics.flush()
        metrics.close()


warm_up()
