"""What is written of what runs: of a cluster in its home, and of a node that joined it in the node's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from cluster.errors import ConfigurationError
from cluster.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a supervisor says of what it runs; `status` is starting, ready or stopping."""

    cluster_id: str
    status: str
    pid: int
    pid_started: float
    ray_address: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState(RunState):
    """What runs under one home."""

    http_url: str
    ports: dict[str, int]

    @property
    def metrics_url(self) -> str:
        """Where the node's merged metrics are, in Prometheus' text format."""
        return f"{self.http_url.rpartition(':')[0]}:{self.ports['node_metrics']}/metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState(RunState):
    """What runs of one node that joined."""

    name: str
    metrics_url: str


S = TypeVar("S", bound=RunState)


def read_state(settings: Settings) -> ClusterState | None:
    """Return what was last written for this home, or None; ask `alive` whether it still holds."""
    return _read(settings.state_path, ClusterState, "If no cluster runs here, delete the file.")


def read_node_state(settings: Settings) -> NodeState | None:
    """Return what was last written of the node whose settings these are, or None; ask `alive` whether it still holds."""
    return _read(settings.node_state_path, NodeState, "If no node of that name runs here, delete the file.")


def node_states(settings: Settings) -> list[NodeState]:
    """Return what was last written of each node that joined under this home, in order of their names."""
    names = sorted(path.parent.name for path in settings.nodes_dir.glob("*/node.json"))
    return [state for name in names if (state := read_node_state(settings.of_node(name))) is not None]


def write_state(path: Path, state: RunState) -> None:
    """Put `state` in the place of what was written before."""
    draft = path.with_suffix(".tmp")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(state), indent=1))
    draft.replace(path)


def _read(path: Path, kind: type[S], hint: str) -> S | None:
    try:
        return kind(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as e:
        raise ConfigurationError(f"{path} cannot be read: {e}", hint=hint) from None
