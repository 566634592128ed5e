"""What is written of a node that joined, for everything that looks for it: `node.json` in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass

import psutil

from cluster.errors import ConfigurationError
from cluster.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeState:
    """What runs of one node that joined; `status` is starting, ready or stopping."""

    name: str
    cluster_id: str
    status: str
    pid: int
    pid_started: float
    ray_address: str
    metrics_url: str
    started_at: float
    version: int = 1

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this is still the process of that id; one that nobody has waited for is dead."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.pid_started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def read_node_state(settings: Settings) -> NodeState | None:
    """Return what was last written of the node whose settings these are, or None; ask `alive` whether it still holds."""
    try:
        return NodeState(**json.loads(settings.node_state_path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as e:
        raise ConfigurationError(
            f"{settings.node_state_path} cannot be read: {e}", hint="If no node of that name runs here, delete the file."
        ) from None


def node_states(settings: Settings) -> list[NodeState]:
    """Return what was last written of each node that joined under this home, in order of their names."""
    names = sorted(path.parent.name for path in settings.nodes_dir.glob("*/node.json"))
    return [state for name in names if (state := read_node_state(settings.of_node(name))) is not None]
