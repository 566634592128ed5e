"""Imported by every idle worker before it is taken, so that an agent that wakes finds its modules loaded and its paths run.

Ray imports the modules that `RAY_preload_python_modules` names when a worker starts. Importing is most of a cold start;
the first serialisation in a process costs about another 0.3 s, and the first graph and the first call build caches that every
later one uses: so one value is serialised and one call is answered here as well, by the scripted model.
"""

from __future__ import annotations

import asyncio
import importlib

from ray import cloudpickle

from actors.heap import settle

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
    # Ray's own serialiser imports it with the first value that an actor returns.
    "pyarrow",
)


def warm_up() -> None:
    """Import what agents need, run the serialiser once, and answer one call."""
    for name in PRELOADED:
        importlib.import_module(name)
    cloudpickle.dumps(lambda: None)  # type: ignore[no-untyped-call]  # Ray ships no types for it
    asyncio.run(_answer_once())
    settle(collect=True)


async def _answer_once() -> None:
    from cluster.agents.brain import Brain
    from cluster.agents.call import Call, CallMeter
    from cluster.agents.catalogue import CATALOGUE, build_tools
    from cluster.agents.models import build_model
    from cluster.agents.sandbox import open_sandbox

    tools = build_tools(sorted(CATALOGUE), sandbox=open_sandbox("bubblewrap", probed=True))
    brain = Brain(build_model("scripted:ok"), tools, instructions="", max_iterations=1, model_name="scripted:ok")
    await brain.run(Call("warm-up", [{"role": "user", "content": "ok"}]), CallMeter())
    await brain.close()


warm_up()
