"""Who wakes next: a bounded number of starts at once, and tenants in turn, so that one tenant's crowd delays only itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from cluster.errors import UnavailableError


class WakeQueue:
    """Turns to start a process. For one event loop; waiting takes no time of anybody else's."""

    def __init__(self, *, at_once: int, waiting: int) -> None:
        """Allow `at_once` starts at the same time, and `waiting` more in the queue; one more is refused."""
        self._free = at_once
        self._room = waiting
        # Tenants with somebody waiting, in the order of their turns.
        self._tenants: deque[str] = deque()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it; raises UnavailableError at once when too many wait."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: str) -> None:
        if self._room <= 0:
            raise UnavailableError("Too many agents are about to start.", hint="Retry in a moment.", retry_after_s=1)
        self._room -= 1
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if tenant not in self._waiting:
            self._waiting[tenant] = deque()
            self._tenants.append(tenant)
        self._waiting[tenant].append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # the turn came at the same moment, and somebody else may have it
                self._pass_on()
            else:
                with suppress(KeyError, ValueError):  # whoever passed a turn on may have met it first
                    self._waiting[tenant].remove(mine)
            raise
        finally:
            self._room += 1

    def _pass_on(self) -> None:
        while self._tenants:
            tenant = self._tenants.popleft()
            queue = self._waiting[tenant]
            while queue:
                if not (first := queue.popleft()).done():
                    if queue:
                        self._tenants.append(tenant)
                    else:
                        del self._waiting[tenant]
                    first.set_result(None)
                    return
            del self._waiting[tenant]
        self._free += 1
