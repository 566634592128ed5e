"""Connects this process to a running cluster as a driver, with its token and its environment."""

from __future__ import annotations

import logging
import os

from actors.ray_environment import NAMESPACE
from actors.topology import ClusterState, read_state
from cluster.errors import UnavailableError
from cluster.settings import Settings


def connect_to(settings: Settings) -> ClusterState:
    """Connect to the cluster of this home; raises UnavailableError when none is ready."""
    state = read_state(settings)
    if state is None or not state.alive or state.status != "ready":
        raise UnavailableError(f"No cluster runs under {settings.home}.", hint="Start one with `sovereign up`.")
    # Ray reads these when it is imported.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(settings.secret_dir / "ray-token")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    ray.init(address=state.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    return state
