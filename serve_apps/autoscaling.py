"""How many gateways there are to be: by the calls that they hold, and by how long a call waits in one before anything happens.

Behind HAProxy Serve sees no queue of an ingress, so each gateway reports its own (`Gateway.record_autoscaling_stats`); with
no gateway at all, calls wait at Serve's own proxy, which Serve counts. Serve's controller asks GatewayPolicy, holds its answer
between the bounds, and acts on it when it lasts (`config`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from cluster.settings import Settings

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

# The names of what gateways report.
CALLS: Final = "calls"
WAIT_P95: Final = "wait_p95_s"
# A gateway in which calls wait so long has more to do than one process can, whatever their number.
SLOW_S: Final = 0.1
# Gateways are taken away when the others would then be filled to at most so much, so that none comes back at once.
ROOM: Final = 0.7
# Over what time Serve averages reports, and how long a crowd must last.
LOOK_BACK_S: Final = 2.0
UP_DELAY_S: Final = 1.0


def gateways_wanted(have: int, queued: float, calls: Collection[float], waits_s: Collection[float], *, target: int) -> int:
    """Return how many gateways there should be of the `have` that there are now, for `target` calls each.

    `queued` calls wait for any gateway; each gateway reports how many it holds and how long 95 of 100 wait in it. Pure; the
    bounds are the caller's.
    """
    held = sum(calls) + queued
    slowest_s = max(waits_s, default=0.0)
    wanted = math.ceil(held / target)
    if slowest_s > SLOW_S:
        return max(wanted, have + 1)
    if wanted < have:
        with_room = math.ceil(held / (target * ROOM))
        return min(have, with_room) if slowest_s < SLOW_S / 2 else have
    return wanted


class GatewayPolicy:
    """Serve's controller makes one, and asks it several times a second."""

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of gateways wanted, as Serve has it."""
        reports = ctx.aggregated_metrics or {}
        wanted = gateways_wanted(
            ctx.target_num_replicas,
            ctx.total_queued_requests or 0.0,
            reports.get(CALLS, {}).values(),
            reports.get(WAIT_P95, {}).values(),
            target=self._target,
        )
        return wanted, {}


def config(settings: Settings) -> AutoscalingConfig | None:
    """Return how Serve scales the gateways; None when their number is fixed."""
    least, most = settings.gateway_min_replicas, settings.most_gateways
    if least == most:
        return None
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        initial_replicas=max(least, 1),
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=UP_DELAY_S,
        downscale_delay_s=settings.gateway_down_delay_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]  # Ray's own
            policy_function="serve_apps.autoscaling:GatewayPolicy", policy_kwargs={"target": settings.gateway_target_queue}
        ),
    )


class LoopWait:
    """How long what is ready waits in an event loop until it runs: a call waits so in each of its steps."""

    INTERVAL_S: Final = 0.05
    # What is looked back at: two seconds.
    SAMPLES: Final = 40

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=self.SAMPLES)
        self._task: asyncio.Task[None] | None = None

    def p95_s(self) -> float:
        """Return what 95 of 100 of the last looks waited at most; begins to look with the first call, in the running loop."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._look())
        return sorted(self._seen)[int(len(self._seen) * 0.95)] if self._seen else 0.0

    async def _look(self) -> None:
        while True:
            due = time.monotonic() + self.INTERVAL_S
            await asyncio.sleep(self.INTERVAL_S)
            self._seen.append(max(0.0, time.monotonic() - due))
