"""Connects this process to a running cluster as a driver, with its token and its environment."""

from __future__ import annotations

import logging

from actors.ray_environment import NAMESPACE
from actors.ray_internals import use_token_on_loopback
from actors.run_state import ClusterState, read_state
from cluster.errors import UnavailableError
from cluster.settings import Settings


def connect_job() -> None:
    """Connect the process of a job to the cluster that runs it, which has told it where and with which token."""
    import ray

    ray.init(namespace=NAMESPACE, logging_level=logging.WARNING)


def connect_to(settings: Settings) -> ClusterState:
    """Connect to the cluster of this home; raises UnavailableError when none is ready."""
    state = read_state(settings)
    if state is None or not state.alive or state.status != "ready":
        raise UnavailableError(f"No cluster runs under {settings.home}.", hint="Start one with `sovereign up`.")
    use_token_on_loopback(settings.secret_dir / "ray-token")
    import ray

    ray.init(address=state.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    return state
