"""The turns of calls in one event loop: who has a place, and who waits for one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cluster.errors import DeadlineExceededError, OverloadedError
from cluster.limits.fair_queue import FairQueue
from cluster.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Place:
    """What a call holds while it is under way."""

    tenant: str
    since_ns: int


class Turns:
    """Places for calls, shared fairly between tenants."""

    def __init__(self, places: int, waiting: int, metrics: Metrics | None = None) -> None:
        """Have at most `places` calls under way and `waiting` waiting; where nothing may wait, one tenant may have all places."""
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(places, waiting, shared=waiting > 0)
        self._metrics = metrics

    @property
    def calls(self) -> int:
        """Calls that are under way or wait."""
        return self._queue.running + self._queue.waiting

    @property
    def load(self) -> int:
        """Calls that are a reason for more processes: what one tenant piles up beyond its share is none."""
        return self._queue.load()

    async def enter(self, tenant: str, left_s: float) -> Place:
        """Return a place, at once or when its turn has come.

        Raises OverloadedError at once when as many calls of the tenant wait as may, DeadlineExceededError after `left_s`.
        """
        if not self._queue.enter(tenant):
            await self._wait(tenant, left_s)
        self._changed()
        return Place(tenant, time.monotonic_ns())

    def leave(self, place: Place) -> None:
        """Give the place back."""
        self._queue.leave(place.tenant, (time.monotonic_ns() - place.since_ns) // 1_000)
        while (turn := self._queue.next()) is not None:
            turn.set_result(None)
        self._changed()

    async def _wait(self, tenant: str, left_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._queue.wait(tenant, turn)
        if ticket is None:
            raise OverloadedError(
                f"{self.calls} calls are under way or wait here, and no more of this tenant may.",
                hint="Retry after a moment.",
                retry_after_s=1,
            )
        self._changed()
        try:
            async with asyncio.timeout(left_s):
                await turn
        except BaseException as e:
            if not self._queue.give_up(tenant, ticket):
                # Its turn came in that very moment.
                self.leave(Place(tenant, time.monotonic_ns()))
            self._changed()
            if isinstance(e, TimeoutError):
                raise DeadlineExceededError("The call's deadline passed while it waited for its turn.") from None
            raise

    def _changed(self) -> None:
        if self._metrics is not None:
            self._metrics.queue_depth(self.calls)
