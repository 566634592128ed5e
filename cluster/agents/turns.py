"""One turn at a time within a conversation, in order of arrival; conversations do not wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from cluster.agents.conversation_locks import ConversationLocks
from cluster.errors import OverloadedError

MAX_WAITING_TURNS = 16
# No conversation has this name: clients can't say NUL.
_OPENING = "\0opening"


class Turns:
    """The queue of each conversation that has a turn running or waiting; nothing is kept of the others."""

    def __init__(self, max_waiting: int = MAX_WAITING_TURNS, locks: ConversationLocks | None = None) -> None:
        """Give `locks` when other processes answer for the same agent."""
        self._max_waiting = max_waiting
        self._locks = locks
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
            async with lock, self._against_others(thread_id):
                yield
        finally:
            lock, count = self._threads[thread_id]
            if count == 1:
                del self._threads[thread_id]
            else:
                self._threads[thread_id] = (lock, count - 1)

    def opening(self) -> AbstractAsyncContextManager[None]:
        """Wait until no other process opens the agent's conversations, which it does once."""
        return self._against_others(_OPENING)

    def close(self) -> None:
        """Let go of what other processes could wait for."""
        if self._locks is not None:
            self._locks.close()

    def _against_others(self, thread_id: str) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._locks is None else self._locks.held(thread_id)
