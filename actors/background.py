"""What a loop must not wait for: work that blocks goes off it, and work that nobody waits for is held until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Runner(Protocol):
    """Runs what blocks off the event loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Return what `function` returns."""
        ...


class Background:
    """Work that nobody waits for. For one event loop, which itself keeps only weak references to its tasks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, work: Awaitable[None]) -> None:
        """Begin `work`, and hold it until it ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
