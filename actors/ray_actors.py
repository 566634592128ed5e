"""Creating, finding and ending Ray actors: the few calls of Ray that the shells share, with types."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.ray_environment import NAMESPACE

# The governance actor, which everybody finds by its name.
GOVERNANCE: Final = "governance"
# Ray gives this resource to its head, under whatever id it comes back.
HEAD_RESOURCE: Final = "node:__internal_head__"
# A handle has its actor's methods, which Ray's own generic type cannot say: it makes every call `Never`.
Handle: TypeAlias = Any


def restart(name: str, timeout_s: float) -> None:
    """End an actor that Ray starts again, and return when it answers `ready`; raises ValueError, RayError. Blocks."""
    handle = find(name)
    deadline = time.monotonic() + timeout_s
    before = ray.get(handle.__ray_call__.remote(_process), timeout=timeout_s)
    ray.kill(handle, no_restart=False)
    while True:
        try:
            # The one that is being ended may still answer.
            if ray.get(handle.__ray_call__.remote(_process), timeout=max(0.1, deadline - time.monotonic())) != before:
                ray.get(handle.ready.remote(), timeout=max(0.1, deadline - time.monotonic()))
                return
        except RayError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise GetTimeoutError(f"{name} did not end within {timeout_s:g} s.")
        time.sleep(0.1)


def _process(_: object) -> int:
    return os.getpid()


def create(
    cls: type,
    *arguments: object,
    name: str,
    cpus: float = 0,
    memory_bytes: int | None = None,
    restarts: bool,
    concurrency: int | None = None,
    node_id: str | None = None,
    on_head: bool = False,
    labels: Mapping[str, str] | None = None,
    get_if_exists: bool = True,
    place: object | None = None,
) -> Handle:
    """Create a detached actor under `name`, or return the one that has it, when `get_if_exists`.

    It gets no runtime_env, because an actor with one of its own misses the warm pool. With `restarts` Ray starts it again
    whenever it ends; no call is ever repeated by Ray. It is on the node with `node_id` or nowhere; with `on_head` on the
    node of the control store, also when that comes back under another id; and only where Ray's selector `labels` holds.
    `place` is one of a gang's (`placement_groups.py`), which says by itself where that is.
    """
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": get_if_exists,
        "num_cpus": cpus,
        "memory": memory_bytes,
        "max_restarts": -1 if restarts else 0,
        "max_task_retries": 0,
    }
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    if node_id is not None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    if on_head:
        options["resources"] = {HEAD_RESOURCE: 0.001}
    if place is not None:
        options["scheduling_strategy"] = place
    elif labels:
        options["label_selector"] = dict(labels)
    return _exported(cls).options(**options).remote(*arguments)


@functools.cache
def _exported(cls: type) -> Any:
    """Return the actor class; each call of `ray.remote` would export it anew, and every worker fetch it anew."""
    return ray.remote(cls)


def find(name: str) -> Handle:
    """Return the actor with this name; raises ValueError when there is none. Blocks: never call it on an event loop."""
    return ray.get_actor(name, NAMESPACE)


def kill(handle: Handle) -> None:
    """End an actor's process at once; it is not started again."""
    ray.kill(handle)


def names(prefix: str) -> set[str]:
    """Return the names of the platform's live actors that begin with `prefix`."""
    listed: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return {n["name"] for n in listed if n["namespace"] == NAMESPACE and n["name"].startswith(prefix)}
