"""The nodes of the cluster as Ray knows them: what each has, what it is labelled, and whether it is there."""

from __future__ import annotations

from typing import Any, Final

import ray

from actors.ray_actors import HEAD_RESOURCE
from cluster.agents.placement import NODE_LABEL, Node
from cluster.agents.spec import Resources

# Labels under this prefix are Ray's own.
_RAYS_LABELS: Final = "ray.io/"


def nodes_of_ray() -> list[Node]:
    """Return every node that Ray has known, once under each of its names; blocks: never call it on an event loop."""
    untyped: Any = ray
    found: dict[str, Node] = {}
    for entry in untyped.nodes():
        labels = {k: v for k, v in entry.get("Labels", {}).items() if not k.startswith(_RAYS_LABELS)}
        name = labels.pop(NODE_LABEL, "")
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
