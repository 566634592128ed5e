"""One turn at a time within a conversation, in order of arrival; conversations do not wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.errors import OverloadedError

MAX_WAITING_TURNS = 16


class Turns:
    """The queue of each conversation that has a turn running or waiting; nothing is kept of the others."""

    def __init__(self, max_waiting: int = MAX_WAITING_TURNS) -> None:
        self._max_waiting = max_waiting
        # asyncio.Lock wakes its waiters in order of arrival; the count is of the turn that runs and those that wait.
        self._threads: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._threads)

    @asynccontextmanager
    async def turn(self, thread_id: str) -> AsyncIterator[None]:
        """Wait for this conversation's turn and hold it.

        Raises OverloadedError at once when too many turns already wait in it.
        """
        lock, count = self._threads.get(thread_id) or (asyncio.Lock(), 0)
        if count > self._max_waiting:
            raise OverloadedError(
                f"{self._max_waiting} turns already wait in this conversation.",
                hint="Wait for an answer before you ask again, or use several conversations.",
                retry_after_s=1.0,
            )
        self._threads[thread_id] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._threads[thread_id]
            if count == 1:
                del self._threads[thread_id]
            else:
                self._threads[thread_id] = (lock, count - 1)
