"""Imported by every idle worker before it is taken, so that an agent that wakes finds its modules loaded.

Ray imports the modules that `RAY_preload_python_modules` names when a worker starts. Importing is most of a cold
start; the first serialisation in a process costs another 0.4 s, so one value is serialised here as well.
"""

from __future__ import annotations

import importlib

from ray import cloudpickle

PRELOADED = (
    "uvloop",
    "msgpack",
    "langchain.agents",
    "langgraph.checkpoint.sqlite.aio",
    "langchain_openai",
    "actors.agent",
)


def warm_up() -> None:
    """Import what agents need and run the serialiser once."""
    for name in PRELOADED:
        importlib.import_module(name)
    cloudpickle.dumps(lambda: None)  # type: ignore[no-untyped-call]  # Ray ships no types for it


warm_up()
