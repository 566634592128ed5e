"""The nodes of the cluster as Ray knows them: what each has, what it is labelled, and whether it is there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import ray

from actors.ray_actors import HEAD_RESOURCE
from cluster.agents.placement import NODE_LABEL, START_LABEL, Node, require_node, selector
from cluster.agents.quantity import format_cpu, format_memory
from cluster.agents.spec import AgentSpec, Resources

# Labels under this prefix are Ray's own.
_RAYS_LABELS: Final = "ray.io/"


def living_starts(name: str) -> list[str]:
    """Return which starts of a node are alive: an earlier one too, and at first alone, as long as Ray takes it for alive."""
    untyped: Any = ray
    labels = [entry["Labels"] for entry in untyped.nodes() if entry["Alive"]]
    return [each.get(START_LABEL, "") for each in labels if each.get(NODE_LABEL) == name]


def nodes_of_ray() -> list[Node]:
    """Return every node that Ray has known, once under each of its names; blocks: never call it on an event loop."""
    untyped: Any = ray
    found: dict[str, Node] = {}
    for entry in untyped.nodes():
        labels = {k: v for k, v in entry.get("Labels", {}).items() if not k.startswith(_RAYS_LABELS)}
        name = labels.pop(NODE_LABEL, "")
        labels.pop(START_LABEL, None)
        if not name or (name in found and not entry["Alive"]):
            continue  # not a node of ours, or an earlier life of one
        held = entry.get("Resources", {})
        found[name] = Node(
            name=name,
            ray_id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            alive=entry["Alive"],
            head=HEAD_RESOURCE in held,
            total=Resources(round(held.get("CPU", 0) * 1000), int(held.get("memory", 0))),
            labels=labels,
        )
    return sorted(found.values(), key=lambda node: (not node.head, node.name))


class KnownNodes:
    """What governance knows of the nodes: as Ray last said, and which of them take no agents. For one event loop."""

    def __init__(self) -> None:
        # Empty before the first look: then nothing is refused for want of a node.
        self._nodes: list[Node] = []
        self.cordoned: frozenset[str] = frozenset()

    @property
    def all(self) -> list[Node]:
        """Every node that is or was there, the head first."""
        return list(self._nodes)

    @property
    def home(self) -> str:
        """The name of the node that `up` started; empty before the first look."""
        return next((node.name for node in self._nodes if node.head), "")

    def learn(self, nodes: Collection[Node]) -> None:
        """Believe what Ray says."""
        self._nodes = list(nodes)

    def require(self, spec: AgentSpec) -> None:
        """Return when some node could hold the agent, were it empty; raises NoNodeError."""
        if self._nodes:
            require_node(spec.resources, dict(spec.node_labels), self._nodes, self.cordoned)

    def have_place(self, spec: AgentSpec, held: Iterable[tuple[str, Resources]]) -> bool:
        """Return whether one of the nodes that the agent may be on has room for it beside what agents hold, by node.

        With one node, what is free over all nodes says so better: it counts what others hold too.
        """
        there = [node for node in self._nodes if node.alive]
        if len(there) < 2:
            return True
        free = {node.name: node.total for node in there if self.allow(spec, node.name)}
        for name, holds in held:
            if (left := free.get(name or self.home)) is not None:
                free[name or self.home] = Resources(left.cpu_milli - holds.cpu_milli, left.memory_bytes - holds.memory_bytes)
        wanted = spec.resources
        return any(wanted.cpu_milli <= x.cpu_milli and wanted.memory_bytes <= x.memory_bytes for x in free.values())

    def selector(self, spec: AgentSpec) -> dict[str, str]:
        """Return Ray's label selector of the agent; empty when it may be anywhere."""
        return selector(dict(spec.node_labels), self.cordoned)

    def allow(self, spec: AgentSpec, name: str) -> bool:
        """Return whether the agent may be on the node of that name, where it would take the process of another one."""
        node = next((n for n in self._nodes if n.name == (name or self.home)), None)
        return self.takes(name) and (not spec.node_labels if node is None else node.has(dict(spec.node_labels)))

    def takes(self, name: str) -> bool:
        """Return whether the node takes agents; an empty name is the head's."""
        return (name or self.home) not in self.cordoned


def to_public(node: Node, cordoned: bool, agents: int) -> dict[str, Any]:
    """Return a node as operators see it; `agents` live on it."""
    return {
        "name": node.name,
        "state": "gone" if not node.alive else "drained" if cordoned else "ready",
        "head": node.head,
        "address": node.address,
        "agents": agents,
        "cpu": format_cpu(node.total.cpu_milli),
        "memory": format_memory(node.total.memory_bytes >> 20 << 20),
        "labels": dict(node.labels),
    }
