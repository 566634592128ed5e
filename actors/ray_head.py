"""Runs Ray's processes of the head node as `ray start --head --block` does, and starts those again that can come back.

`ray start` ends everything when any of its processes ends. Here only the raylet's end does that, because every actor's
process ends with it. The control store reads from its disk what it knew, and nobody who calls an agent notices; the
others hold nothing. Run by the supervisor as `python -m actors.ray_head start --head --block …`. Every process here ends
with this one, whatever ends it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ray._private import node as ray_node
from ray._private import ray_constants as names
from ray.scripts import scripts

from actors.restart_bound import RestartBound

# Of one node, for all of its processes together.
RESTARTS, WITHIN_S = 10, 600.0


class LastingNode(ray_node.Node):
    """A node that, asked for its dead processes, starts again what it can, and names the rest."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Start the node as Ray does."""
        self._bound = RestartBound(RESTARTS, WITHIN_S)
        super().__init__(*arguments, **options)

    def dead_processes(self) -> list[tuple[str, Any]]:
        """Return the processes that ended and could not be started again; Ray's own loop then ends all of them."""
        parameters: Any = self._ray_params
        # In this order: the others find their way by the control store.
        again: dict[str, Callable[[], None]] = {
            names.PROCESS_TYPE_GCS_SERVER: self._start_control_store,
            names.PROCESS_TYPE_DASHBOARD: lambda: self.start_api_server(
                include_dashboard=parameters.include_dashboard, raise_on_failure=True
            ),
            names.PROCESS_TYPE_LOG_MONITOR: self.start_log_monitor,
            names.PROCESS_TYPE_MONITOR: self.start_monitor,
            names.PROCESS_TYPE_RAY_CLIENT_SERVER: self.start_ray_client_server,
        }
        dead: list[tuple[str, Any]] = list(super().dead_processes())  # type: ignore[no-untyped-call]
        if any(kind not in again for kind, _ in dead):
            return dead
        for kind, process in sorted(dead, key=lambda d: list(again).index(d[0])):
            if not self._bound.allows(time.monotonic()):
                print(f"{kind} is not started again: {RESTARTS} restarts in {WITHIN_S:.0f} s", flush=True)
                return dead
            print(f"{kind} ended with code {process.returncode} and is started again", flush=True)
            del self.all_processes[kind]
            again[kind]()
        return []

    def _start_control_store(self) -> None:
        self._gcs_address = self._gcs_client = None  # it would take them for those of one that runs
        self.start_gcs_server()  # type: ignore[no-untyped-call]  # so are all of Ray's here


def main() -> None:
    """Run the command line of `ray` with such a node."""
    ray_node.Node = LastingNode  # type: ignore[misc]  # where the command looks it up
    sys.argv[0] = "ray"
    scripts.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
