"""Every part of the platform again, from the code that is on disk now: one after the other, under load, and no call fails of it.

What stays as it was is the supervisor with Ray's own processes, and the local model; `down` and `up` change those.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray

from actors.marked import end_idle_workers
from actors.ray_actors import GOVERNANCE, find, names, restart
from actors.run_state import ClusterState
from actors.shipper import PREFIX as SHIPPERS
from cluster.errors import from_problem
from cluster.settings import Settings
from serve_apps.gateway import deploy

PART_TIMEOUT_S = 60.0


def upgrade(state: ClusterState, say: Callable[[str], None]) -> int:
    """Replace gateways, shippers, governance and agents of the cluster that this process is connected to.

    Returns how many agents' processes were replaced. Raises what keeps a part from coming back; those before it are new then,
    those after it old, and it may be run again.
    """
    settings = Settings.from_json(_answer(GOVERNANCE, "cluster_settings", PART_TIMEOUT_S))
    named = settings.model_copy(update={"public_url": settings.public_url or state.http_url})
    # They have the earlier code in memory.
    end_idle_workers(state.cluster_id)
    say("replacing the gateways, each when another has taken its place")
    deploy(named)
    say("restarting shippers and governance")
    for name in sorted(names(SHIPPERS)):
        restart(name, PART_TIMEOUT_S)
    restart(GOVERNANCE, PART_TIMEOUT_S)
    _answer(GOVERNANCE, "fill_pool", PART_TIMEOUT_S)
    say("replacing the agents' processes, each when its calls have ended")
    replaced: int = _answer(GOVERNANCE, "renew_agents", None)
    return replaced


def _answer(actor: str, method: str, timeout_s: float | None) -> Any:
    document = json.loads(ray.get(getattr(find(actor), method).remote(), timeout=timeout_s))
    if "problem" in document:
        raise from_problem(document["problem"])
    return document["ok"]
