"""What an agent is declared to be: complete, normalised, and named by a digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import orjson

from cluster.agents.budget import NO_BUDGET, Budget
from cluster.errors import IntegrityError
from cluster.identity.ids import AgentId

MAX_ITERATIONS: Final = 100
MAX_REPLICAS: Final = 64
MAX_TARGET_QUEUE: Final = 1024
TARGET_QUEUE: Final = 8


@dataclass(frozen=True, slots=True)
class Resources:
    """What one process may use at most: thousandths of a CPU, and bytes of memory."""

    cpu_milli: int
    memory_bytes: int

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpu_milli + other.cpu_milli, self.memory_bytes + other.memory_bytes)

    def times(self, count: int) -> Resources:
        """Return what `count` processes of this size may use together."""
        return Resources(self.cpu_milli * count, self.memory_bytes * count)


@dataclass(frozen=True, slots=True)
class SpecDefaults:
    """A tenant's default policy: what a registration gets where it says nothing."""

    agent_type: str
    model: str
    resources: Resources
    data_access_level: str
    max_iterations: int = 10
    network_access: tuple[str, ...] = ()
    compliance: tuple[str, ...] = ()
    budget: Budget = NO_BUDGET


@dataclass(frozen=True)
class AgentSpec:
    """One agent as its owner declared it, completed by the tenant's default policy. Name lists are sorted and unique."""

    agent_id: AgentId
    agent_type: str
    capabilities: tuple[str, ...]
    # LangChain's `provider:model`.
    model: str
    instructions: str
    # None asks for every tool that follows from the capabilities; an empty tuple asks for none.
    allowed_tools: tuple[str, ...] | None
    # Of one replica.
    resources: Resources
    network_access: tuple[str, ...]
    data_access_level: str
    compliance: tuple[str, ...]
    # Model iterations in one call, 1 to 100.
    max_iterations: int
    # How many processes may answer for it at once.
    max_replicas: int
    labels: tuple[tuple[str, str], ...] = ()
    # How many do so also while nobody calls.
    min_replicas: int = 0
    # Calls for each replica above which there is to be one more.
    target_queue: int = TARGET_QUEUE
    # Labels that a node must have for a process of the agent to be there.
    node_labels: tuple[tuple[str, str], ...] = ()
    # What all its replicas may spend together; reserved of the tenant's budget as long as the agent is registered.
    budget: Budget = NO_BUDGET

    @property
    def reserved(self) -> Resources:
        """What all replicas together count in the tenant's quota: what may exist is admitted."""
        return self.resources.times(self.max_replicas)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the same for the same spec; `from_json` reads them."""
        return {
            "agent_id": str(self.agent_id),
            "agent_type": self.agent_type,
            "capabilities": list(self.capabilities),
            "model": self.model,
            "instructions": self.instructions,
            "allowed_tools": None if self.allowed_tools is None else list(self.allowed_tools),
            "cpu_milli": self.resources.cpu_milli,
            "memory_bytes": self.resources.memory_bytes,
            "network_access": list(self.network_access),
            "data_access_level": self.data_access_level,
            "compliance": list(self.compliance),
            "max_iterations": self.max_iterations,
            "max_replicas": self.max_replicas,
            "min_replicas": self.min_replicas,
            "target_queue": self.target_queue,
            "labels": dict(self.labels),
            # Only when asked for, so that the digests of specs from before stay as they are.
            **({"node_labels": dict(self.node_labels)} if self.node_labels else {}),
            **({"budget": self.budget.to_json()} if self.budget else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AgentSpec:
        """Return the spec that `to_json` wrote; raises IntegrityError when it is not one."""
        tools = value.get("allowed_tools")
        try:
            return cls(
                agent_id=AgentId(value["agent_id"]),
                agent_type=value["agent_type"],
                capabilities=tuple(value["capabilities"]),
                model=value["model"],
                instructions=value["instructions"],
                allowed_tools=None if tools is None else tuple(tools),
                resources=Resources(value["cpu_milli"], value["memory_bytes"]),
                network_access=tuple(value["network_access"]),
                data_access_level=value["data_access_level"],
                compliance=tuple(value["compliance"]),
                max_iterations=value["max_iterations"],
                # Of before an agent could have several.
                max_replicas=value["max_replicas"] if "max_replicas" in value else value["replicas"],
                min_replicas=value.get("min_replicas", 0),
                target_queue=value.get("target_queue", TARGET_QUEUE),
                labels=tuple(sorted(value["labels"].items())),
                node_labels=tuple(sorted(value.get("node_labels", {}).items())),
                budget=Budget.from_json(value["budget"]) if "budget" in value else NO_BUDGET,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise IntegrityError(f"A stored agent spec can't be read: {e!r}.") from None

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of the canonical JSON: keys sorted, no blanks, UTF-8."""
        return hashlib.sha256(orjson.dumps(self.to_json(), option=orjson.OPT_SORT_KEYS)).hexdigest()
