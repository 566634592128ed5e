"""A gang: agents that are registered, started and removed together, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from cluster.agents.placement import Node
from cluster.agents.spec import AgentSpec, Resources
from cluster.errors import IntegrityError

# So that its rows, and all that goes with them, fit into one transaction.
MAX_GANG: Final = 24
# What the names of places for gangs begin with.
GROUP_PREFIX: Final = "gang:"


class Strategy(StrEnum):
    """How the members are spread over nodes: Ray's own four words."""

    PACK = "pack"
    SPREAD = "spread"
    STRICT_PACK = "strict_pack"
    STRICT_SPREAD = "strict_spread"


@dataclass(frozen=True, slots=True)
class Gang:
    """Which agents it has, in order, and how they are to be placed."""

    tenant: str
    gang_id: str
    agents: tuple[str, ...]
    strategy: Strategy
    # The name of its place in Ray; never used twice.
    group: str
    # SHA-256 of what was asked for.
    fingerprint: str

    def to_bytes(self) -> bytes:
        """Return the value of this gang's node."""
        return orjson.dumps(
            {
                "tenant": self.tenant,
                "gang_id": self.gang_id,
                "agents": self.agents,
                "strategy": self.strategy.value,
                "group": self.group,
                "fingerprint": self.fingerprint,
            }
        )

    def to_public(self) -> dict[str, Any]:
        """Return what its owner may see."""
        return {"gang_id": self.gang_id, "agents": list(self.agents), "strategy": self.strategy.value}

    @classmethod
    def from_bytes(cls, value: bytes) -> Gang:
        """Return the gang that `to_bytes` wrote; raises IntegrityError."""
        try:
            d: dict[str, Any] = orjson.loads(value)
            strategy = Strategy(d["strategy"])
            return cls(d["tenant"], d["gang_id"], tuple(d["agents"]), strategy, d["group"], d["fingerprint"])
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A stored gang can't be read: {e!r}.") from None


def gang_unfit(specs: Sequence[AgentSpec], index: int, strategy: Strategy, nodes: Sequence[Node]) -> dict[str, str]:
    """Return what keeps member `index` from being part of such a gang: names of checks, each with what to change.

    `nodes` are those that are known; while there are none, none is missed. That each member fits by itself is asked elsewhere.
    """
    spec = specs[index]
    failed: dict[str, str] = {}
    if any(other.agent_id == spec.agent_id for other in specs[:index]):
        failed["gang_members_distinct"] = f"The gang names {spec.agent_id} twice. Give each member an id of its own."
    if spec.max_replicas != 1:
        failed["gang_member_single"] = (
            f"A member has one replica, and this one asks for {spec.max_replicas}. List each process as a member of its own."
        )
    if nodes and (why := gang_infeasible(specs, strategy, nodes)):
        failed["gang_feasible"] = why
    return failed


def gang_infeasible(specs: Sequence[AgentSpec], strategy: Strategy, nodes: Sequence[Node]) -> str:
    """Return why the nodes that are known could not hold the members as `strategy` asks, or nothing; each fits by itself.

    Of `strict_pack` one node must hold them all; of `strict_spread` there must be a node for each.
    """
    if strategy is Strategy.STRICT_PACK:
        wanted = sum((spec.resources for spec in specs), Resources(0, 0))
        if not any(node.could_hold(wanted) and all(_may_hold(node, spec) for spec in specs) for node in nodes):
            return (
                f"All members together declare {wanted.cpu_milli}m CPU and {wanted.memory_bytes >> 20} MiB, more than any one "
                "node has that all of them may be on. Declare less, or choose the strategy pack."
            )
    if strategy is Strategy.STRICT_SPREAD and not _a_node_each(specs, nodes):
        return f"There are not {len(specs)} nodes that could hold one member each. Choose the strategy spread, or let nodes join."
    return ""


def _may_hold(node: Node, spec: AgentSpec) -> bool:
    return node.has(dict(spec.node_labels)) and node.could_hold(spec.resources)


def _a_node_each(specs: Sequence[AgentSpec], nodes: Sequence[Node]) -> bool:
    """Return whether every spec can have a node of its own: a matching by augmenting paths."""
    holder: dict[str, int] = {}

    def find(index: int, seen: set[str], fits: Mapping[int, list[str]]) -> bool:
        for name in fits[index]:
            if name not in seen:
                seen.add(name)
                if name not in holder or find(holder[name], seen, fits):
                    holder[name] = index
                    return True
        return False

    fits = {i: [n.name for n in nodes if _may_hold(n, spec)] for i, spec in enumerate(specs)}
    return all(find(i, set(), fits) for i in fits)
