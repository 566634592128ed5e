"""One generation of an agent as its governor holds it: started, asked, drained and ended through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ray.exceptions import RayError

from actors.agent import AgentActor
from actors.ray_actors import Handle, create, find, kill
from actors.start_order import StartOrder
from cluster.agents.spec import Resources

START_TIMEOUT_S = 20.0
STATUS_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
# What the names of agents' actors begin with.
PREFIX = "agent:"
# Tenant and agent id.
Key = tuple[str, str]


@dataclass(slots=True)
class AgentProcess:
    """A process that answers under one generation."""

    handle: Handle
    host: str
    port: int
    generation: int
    # What it holds of the cluster.
    resources: Resources
    # What is enforced on it; None until it said so.
    enforcement: dict[str, Any] | None = None
    # Where it is; empty for the node that `up` started.
    node: str = ""

    @classmethod
    async def start(cls, order: StartOrder, agent_key: bytes, where: Mapping[str, str]) -> Self:
        """Create the actor on a node that Ray's selector `where` holds for, and wait until it answers.

        Raises what Ray raises or TimeoutError, and then nothing is left of it.
        """
        resources = order.record.spec.resources
        handle = create(
            AgentActor,
            order.to_bytes(),
            name=actor_name((order.tenant, order.record.spec.agent_id), order.generation),
            cpus=resources.cpu_milli / 1000,
            memory_bytes=resources.memory_bytes,
            restarts=False,  # only governance revives
            concurrency=16,
            labels=where,
            get_if_exists=False,
        )
        try:
            status = json.loads(await asyncio.wait_for(handle.start.remote(agent_key), START_TIMEOUT_S))
        except BaseException:
            kill(handle)
            raise
        return cls(handle, status["host"], status["port"], order.generation, resources, node=status["node"])

    @classmethod
    def find(cls, key: Key, generation: int, resources: Resources) -> Self:
        """Return a generation that another governor started; ValueError when there is no actor. Blocks: not for event loops."""
        return cls(find(actor_name(key, generation)), "", 0, generation, resources)

    async def adopt(self) -> bool:
        """Learn where it answers; returns whether it says so within STATUS_TIMEOUT_S."""
        status = await self.status()
        if status is None or status["state"] != "live":
            return False
        self.host, self.port, self.enforcement = status["host"], status["port"], status["enforcement"]
        self.node = status.get("node", "")
        return True

    async def status(self) -> dict[str, Any] | None:
        """Return what the agent says of itself, or None when it does not within STATUS_TIMEOUT_S."""
        try:
            status: dict[str, Any] = json.loads(await asyncio.wait_for(self.handle.status.remote(), STATUS_TIMEOUT_S))
        except (RayError, TimeoutError):
            return None
        return status

    async def watch(self, idle_s: float) -> str:
        """Wait until it has had no call for `idle_s` ("idle"), another governor watches ("watched"), or it is gone ("gone")."""
        try:
            return str(await self.handle.watch.remote(idle_s))
        except RayError:
            return "gone"

    async def drain(self, *, only_idle: bool = False) -> bool:
        """End the process when its calls have ended; returns False when `only_idle` and it has something to do."""
        try:
            return bool(await asyncio.wait_for(self.handle.drain.remote(DRAIN_TIMEOUT_S, only_idle), DRAIN_TIMEOUT_S + 2))
        except TimeoutError:
            if only_idle:
                return False
            self.kill()
        except RayError:
            self.kill()
        return True

    def kill(self) -> None:
        """End the process at once."""
        kill(self.handle)


def actor_name(key: Key, generation: int) -> str:
    """Return the Ray name of one generation; it keeps a killed actor's name from ever leading to a later one."""
    return f"{PREFIX}{key[0]}:{key[1]}:g{generation}"


def kill_by_name(name: str) -> None:
    """End the actor of this name, if there is one. Blocks: not for event loops."""
    with contextlib.suppress(ValueError):
        kill(find(name))
