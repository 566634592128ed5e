"""On which nodes an agent may be: the labels that it asks for, and the nodes that take nothing new. Pure decisions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cluster.agents.spec import Resources
from cluster.errors import ConfigurationError, FieldError, NoNodeError

# The labels that hold a node's own name and which start of it this is; nobody gives them to a node but the platform.
NODE_LABEL: Final = "sovereign-node"
START_LABEL: Final = "sovereign-start"
PLATFORM_LABELS: Final = frozenset({NODE_LABEL, START_LABEL})
MAX_NODE_LABELS: Final = 16
# Of both Ray's and our own grammar of labels; nothing that Ray would read as an operator ("!x", "in(x)").
NAME_PATTERN: Final = r"[a-z]([a-z0-9_.-]{0,61}[a-z0-9])?"
VALUE_PATTERN: Final = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, or a part of one, that agents may be on. `total` is what its agents may share."""

    name: str
    ray_id: str
    address: str
    alive: bool
    # Whether governance, the control store and the way in are here.
    head: bool
    total: Resources
    labels: Mapping[str, str] = field(default_factory=dict)

    def could_hold(self, wanted: Resources) -> bool:
        """Return whether `wanted` fits when nothing else is here."""
        return wanted.cpu_milli <= self.total.cpu_milli and wanted.memory_bytes <= self.total.memory_bytes

    def has(self, labels: Mapping[str, str]) -> bool:
        """Return whether it is labelled with all of `labels`."""
        return all(self.labels.get(name) == value for name, value in labels.items())


def parse_node_labels(text: str) -> dict[str, str]:
    """Return the labels of `name=value,name=value`; raises ConfigurationError that names what is wrong."""
    labels: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(VALUE_PATTERN, value) or name in PLATFORM_LABELS:
            raise _wrong(f"{part[:80]!r} is no label of the form name=value")
        if labels.setdefault(name, value) != value:
            raise _wrong(f"{name} is given two values")
    if len(labels) > MAX_NODE_LABELS:
        raise _wrong(f"has {len(labels)} labels; the most is {MAX_NODE_LABELS}")
    return labels


def selector(labels: Mapping[str, str], cordoned: Collection[str]) -> dict[str, str]:
    """Return Ray's label selector of an agent that asks for `labels`, which keeps it from the nodes that are `cordoned`."""
    chosen = dict(labels)
    if cordoned:
        chosen[NODE_LABEL] = f"!in({','.join(sorted(cordoned))})"
    return chosen


def require_node(wanted: Resources, labels: Mapping[str, str], nodes: Sequence[Node], cordoned: Collection[str]) -> None:
    """Return when some node could hold an agent that declares `wanted` and asks for `labels`, were it empty.

    Raises NoNodeError, which says which of the conditions no node meets, so that nobody waits for what can't happen.
    """
    there = [node for node in nodes if node.alive]
    labelled = [node for node in there if node.has(labels)]
    if not labelled:
        asked = ", ".join(f"{k}={v}" for k, v in sorted(labels.items()))
        raise NoNodeError(
            f"No node has the labels that it asks for: {asked or 'none'}.",
            hint="`sovereign nodes list` shows the nodes and their labels; a node is labelled when it starts or joins.",
            retry_after_s=10,
        )
    taking = [node for node in labelled if node.name not in cordoned]
    if not taking:
        raise NoNodeError(
            f"{'The node that it may be on is' if len(labelled) == 1 else 'The nodes that it may be on are'} drained.",
            hint="`sovereign nodes resume` makes a node take agents again.",
            retry_after_s=10,
        )
    if not any(node.could_hold(wanted) for node in taking):
        raise NoNodeError(
            f"It declares {wanted.cpu_milli}m CPU and {wanted.memory_bytes >> 20} MiB, more than any node has that it may be on.",
            hint="Declare less, or let a larger node join.",
            retry_after_s=10,
        )


def infeasible(wanted: Resources, labels: Mapping[str, str], nodes: Sequence[Node]) -> str:
    """Return why no node that is known could hold an agent of this size and these labels, or nothing when one could.

    A node that is away or drained counts: it comes back, and to be registered is not to run.
    """
    labelled = [node for node in nodes if node.has(labels)]
    if not labelled:
        asked = ", ".join(f"{k}={v}" for k, v in sorted(labels.items()))
        return f"No node has the labels {asked}. Ask for labels that `sovereign nodes list` shows, or label a node so."
    if not any(node.could_hold(wanted) for node in labelled):
        return (
            f"It declares {wanted.cpu_milli}m CPU and {wanted.memory_bytes >> 20} MiB, more than any node has that it may be on. "
            "Declare less, or let a larger node join."
        )
    return ""


def _wrong(why: str) -> ConfigurationError:
    return ConfigurationError("A node can't be labelled like this.", errors=[FieldError("SOVEREIGN_NODE_LABELS", why)])
