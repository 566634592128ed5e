"""The run store as a gateway's event loop uses it: on threads, with word of every change, whichever gateway made it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, ParamSpec, TypeVar

from cluster.runs.run import RunStatus
from cluster.runs.run_store import RunStore

log = logging.getLogger(__name__)

# Between two looks for other gateways' changes: at once after one, then ever longer. What this gateway writes is seen at once.
SHORTEST_S: Final = 0.002
LONGEST_S: Final = 0.1
# The same while nobody here waits for a run, nor carries one.
IDLE_S: Final = 0.5
THREADS: Final = 4
P = ParamSpec("P")
T = TypeVar("T")


class RunRecords:
    """For one event loop. `follow_for_ever` has to run, or nobody hears of changes."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        # Set when a run was made, is to be cancelled, or has ended; cleared by whoever looks after runs.
        self.moved = asyncio.Event()
        # Set when a run has ended; cleared by whoever tells of it.
        self.ended = asyncio.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="runs")
        self._watches: dict[str, set[asyncio.Event]] = {}
        self._written = asyncio.Event()
        self._seen = -1

    async def read(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a method of the store returns."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(method, *args, **kwargs))

    async def write(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a method of the store returns, and let everybody hear of it."""
        try:
            return await self.read(method, *args, **kwargs)
        finally:
            self._written.set()

    @contextmanager
    def watch(self, run_id: str) -> Iterator[asyncio.Event]:
        """Lend an event that is set whenever the run changes. Clear it, then read, then wait for it."""
        event = asyncio.Event()
        if not self._watches:
            self._written.set()  # it may be in the middle of a long pause
        self._watches.setdefault(run_id, set()).add(event)
        try:
            yield event
        finally:
            watching = self._watches[run_id]
            watching.discard(event)
            if not watching:
                del self._watches[run_id]

    async def follow_for_ever(self) -> None:
        """Tell of every change until it is cancelled."""
        pause = SHORTEST_S
        while True:
            self._written.clear()
            try:
                changed = await self._tell() if self.store.changed() else False
            except Exception:
                # Nobody would look after runs any more if this ended: whatever it is, it is tried again.
                log.exception("the runs can't be followed")
                changed, self._seen = False, -1
                await asyncio.sleep(1.0)
            pause = SHORTEST_S if changed else min(pause * 2, LONGEST_S if self._watches else IDLE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._written.wait()

    def close(self) -> None:
        """Close the store."""
        self._threads.shutdown()
        self.store.close()

    async def _tell(self) -> bool:
        if self._seen < 0:
            # What changed before is not known: everybody looks for themselves.
            self._seen = await self.read(self.store.last_change)
            told = [event for events in self._watches.values() for event in events]
            moved = ended = True
        else:
            changes = await self.read(self.store.changes, self._seen)
            self._seen = changes[-1].number if changes else self._seen
            told = [event for change in changes for event in self._watches.get(change.run_id, ())]
            ended = any(c.status.ended for c in changes)
            moved = any(c.status is not RunStatus.RUNNING or c.cancel_requested for c in changes)
        for event in told:
            event.set()
        if moved:
            self.moved.set()
        if ended:
            self.ended.set()
        return True
