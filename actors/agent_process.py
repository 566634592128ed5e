"""One generation of an agent as its governor holds it: started, asked, drained and ended through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ray.exceptions import RayError

from actors.agent import AgentActor
from actors.ray_actors import Handle, create, find, kill
from actors.start_order import StartOrder
from cluster.agents.scaling import ReplicaLoad
from cluster.agents.spec import AgentSpec, Resources

START_TIMEOUT_S = 20.0
STATUS_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
# Between two reports of what a process has to do.
REPORT_S = 0.5
# Tenant and agent id.
Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class AgentProcess:
    """A process that answers under one generation."""

    handle: Handle
    # The name of the Ray actor, which it keeps when it becomes another agent.
    name: str
    key: Key
    host: str
    port: int
    generation: int
    spec: AgentSpec
    # What is enforced on it; None until it said so.
    enforcement: dict[str, Any] | None = None
    # What it has to do, as it last said.
    load: ReplicaLoad = field(default_factory=ReplicaLoad)
    # Since when it has had no call, by the monotonic clock, as it last said; None when it had one.
    idle_since: float | None = None
    # Where it is; empty for the node that `up` started.
    node: str = ""
    # The gang that it belongs to, in whose place it is; empty without one.
    gang: str = ""

    @classmethod
    async def start(
        cls, order: StartOrder, agent_key: bytes, name: str, where: Mapping[str, str], place: object | None = None
    ) -> Self:
        """Create the actor under `name`, and wait until it answers.

        It is on a node that Ray's selector `where` holds for, or at its `place` in its gang's.
        Raises what Ray raises or TimeoutError, and then nothing is left of it.
        """
        spec = order.record.spec
        handle = create(
            AgentActor,
            order.to_bytes(),
            name=name,
            cpus=spec.resources.cpu_milli / 1000,
            memory_bytes=spec.resources.memory_bytes,
            restarts=False,  # only governance revives
            concurrency=16,
            labels=where,
            get_if_exists=False,
            place=place,
        )
        try:
            status = json.loads(await asyncio.wait_for(handle.start.remote(agent_key), START_TIMEOUT_S))
        except BaseException:
            kill(handle)
            raise
        host, port = status["host"], status["port"]
        return cls(handle, name, order.key, host, port, order.generation, spec, node=status["node"], gang=order.record.gang)

    @classmethod
    def find(cls, name: str, key: Key, generation: int, spec: AgentSpec, gang: str = "") -> Self:
        """Return a process that another governor started; ValueError when there is no actor. Blocks: not for event loops."""
        return cls(find(name), name, key, "", 0, generation, spec, gang=gang)

    async def vacate(self) -> str:
        """Let it close its agent when that has nothing to do; returns what became of it.

        "vacant": it is nobody's, and `rebind` may make it another agent. "busy": it goes on as it was. "ended": it has
        ended, or is not worth keeping and ends now.
        """
        try:
            return str(await asyncio.wait_for(self.handle.vacate.remote(DRAIN_TIMEOUT_S), DRAIN_TIMEOUT_S + 2))
        except (RayError, TimeoutError):
            self.kill()
            return "ended"

    async def rebind(self, order: StartOrder, agent_key: bytes) -> Self:
        """Make a vacant process the agent of `order`; raises what `start` raises, and then nothing is left of it."""
        try:
            answer = await asyncio.wait_for(self.handle.rebind.remote(order.to_bytes(), agent_key), START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise
        status = json.loads(answer)
        host, port, spec = status["host"], status["port"], order.record.spec
        return type(self)(self.handle, self.name, order.key, host, port, order.generation, spec, node=self.node)

    async def adopt(self) -> bool:
        """Learn where it answers; returns whether it says within STATUS_TIMEOUT_S that it is this very generation."""
        status = await self.status()
        if status is None:
            return False
        self.host, self.port, self.enforcement = status["host"], status["port"], status["enforcement"]
        self.node = status.get("node", "")
        return True

    async def status(self) -> dict[str, Any] | None:
        """Return what the agent says of itself; None when it does not within STATUS_TIMEOUT_S, or is another by now."""
        try:
            status: dict[str, Any] = json.loads(await asyncio.wait_for(self.handle.status.remote(), STATUS_TIMEOUT_S))
        except (RayError, TimeoutError):
            return None
        mine = status["state"] == "live" and ((status["tenant"], status["agent_id"]), status["generation"]) == (
            self.key,
            self.generation,
        )
        return status if mine else None

    async def watch(self, idle_s: float) -> str:
        """Wait for news of it, and keep what it says of its load.

        "idle": it has had no call for `idle_s`. "load": it has had calls since it was asked last. "watched": somebody else
        watches, or it became another agent. "gone": it is.
        """
        try:
            news = json.loads(await self.handle.watch.remote(idle_s, REPORT_S))
        except RayError:
            return "gone"
        if "load" in news:
            self.load = ReplicaLoad(news["load"]["calls"], news["load"]["p95_s"])
            idle_for_s = news["load"]["idle_s"]
            self.idle_since = time.monotonic() - idle_for_s if idle_for_s > 0 else None
        return str(news["news"])

    async def drain(self, *, only_idle: bool = False, within_s: float = DRAIN_TIMEOUT_S) -> bool:
        """End the process when its calls have ended; returns False when `only_idle` and it has something to do.

        Calls that have not ended `within_s` end lost.
        """
        try:
            return bool(await asyncio.wait_for(self.handle.drain.remote(within_s, only_idle), within_s + 2))
        except TimeoutError:
            if only_idle:
                return False
            self.kill()
        except RayError:
            self.kill()
        return True

    @property
    def resources(self) -> Resources:
        """What it holds of the cluster beside what its gang holds for it."""
        return Resources(0, 0) if self.gang else self.spec.resources

    def idle_for_s(self) -> float:
        """Return for how long it has had no call, by what it said last; 0 when it had one."""
        return 0.0 if self.idle_since is None else time.monotonic() - self.idle_since

    def kill(self) -> None:
        """End the process at once."""
        kill(self.handle)


def kill_by_name(name: str) -> None:
    """End the actor of this name, if there is one. Blocks: not for event loops."""
    with contextlib.suppress(ValueError):
        kill(find(name))
