"""Idle worker processes, kept ready so that an agent wakes in milliseconds.

Ray hands an idle worker to the first actor that has no runtime_env of its own, and never replaces it; so after each
take the pool is asked to refill, a moment later, because starting a process takes CPU that the waking agent needs first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from actors.ray_internals import prestart_workers
from cluster.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

REFILL_DELAY_S = 0.5
# What a worker takes at least from being asked for to being ready.
REFILL_S = 3.0


class WarmPool:
    """Asks the node for idle workers until `size` are ready. A failed refill costs a cold start, nothing else."""

    def __init__(self, size: int, metrics: Metrics) -> None:
        self.size = size
        self._metrics = metrics
        self._taken = 0
        # When workers were taken; only the last `size` times count.
        self._takes: deque[float] = deque(maxlen=size or 1)
        self._timer: asyncio.TimerHandle | None = None
        self._refills: set[asyncio.Future[None]] = set()

    @property
    def empty(self) -> bool:
        """Whether it is known that no worker is ready, so that a start would be cold."""
        return len(self._takes) >= self.size and (not self.size or self._takes[0] > time.monotonic() - REFILL_S)

    def fill(self) -> None:
        """Ask for the whole pool; called once, when nothing more urgent needs the CPU."""
        self._taken = self.size
        self._refill()

    def taken(self) -> None:
        """Note that an agent took a worker; what was taken is refilled together after a short delay."""
        self._taken += 1
        self._takes.append(time.monotonic())
        if self.size and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REFILL_DELAY_S, self._refill)

    def _refill(self) -> None:
        self._timer = None
        count, self._taken = min(self._taken, self.size), 0
        if not count:
            return
        refill = asyncio.ensure_future(asyncio.to_thread(self._ask, count))
        self._refills.add(refill)
        refill.add_done_callback(self._refills.discard)

    def _ask(self, count: int) -> None:
        try:
            prestart_workers(count)
        except Exception as e:  # an internal interface of Ray may raise anything; cold starts still work
            self._metrics.refill_failed()
            log.warning("the warm pool was not refilled: %s", e)
