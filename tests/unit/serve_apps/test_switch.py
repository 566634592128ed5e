"""A gateway begins to carry runs when it starts, and ends what it carries before it goes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from serve_apps.switch import Switch


class CarriedRuns:
    def __init__(self) -> None:
        self.begun = 0
        self.draining = asyncio.Event()
        self.ended = asyncio.Event()

    def begin(self) -> None:
        self.begun += 1

    async def drain(self) -> None:
        self.draining.set()
        await self.ended.wait()


async def test_a_gateway_is_gone_only_when_its_runs_have_ended() -> None:
    """Serve hears that the shutdown is complete after the drain, and not before: what is cut off then would be lost."""
    switch, runs, said = Switch(), CarriedRuns(), list[str]()
    switch.runs = cast("Any", runs)
    coming: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def send(message: Any) -> None:
        said.append(message["type"])

    life = asyncio.ensure_future(switch({"type": "lifespan"}, cast("Any", coming.get), send))
    coming.put_nowait({"type": "lifespan.startup"})
    coming.put_nowait({"type": "lifespan.shutdown"})
    await runs.draining.wait()
    assert (runs.begun, said) == (1, ["lifespan.startup.complete"])
    runs.ended.set()
    await life
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
