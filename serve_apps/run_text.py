"""A run's text on its way to the store: the first piece at once, the others as they come together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from serve_apps.run_records import RunRecords

# What comes within this time is one event, so that a run has at most fifty a second.
TOGETHER_S: Final = 0.02
# What may be unwritten before the agent has to wait.
UNWRITTEN_CHARS: Final = 64 << 10


class RunText:
    """The pieces of one run."""

    def __init__(self, records: RunRecords, run_id: str) -> None:
        self._records = records
        self._run_id = run_id
        self._pieces: list[str] = []
        self._unwritten: list[str] = []
        self._size = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._ending = asyncio.Event()

    @property
    def whole(self) -> str:
        """All text so far."""
        return "".join(self._pieces)

    async def put(self, piece: str) -> None:
        """Add a piece; raises what writing those before raised."""
        self._pieces.append(piece)
        self._unwritten.append(piece)
        self._size += len(piece)
        self._more.set()
        while self._size > UNWRITTEN_CHARS and not self._writer.done():
            self._room.clear()
            await self._room.wait()
        if self._writer.done():
            await self._writer

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write what is put, all of it by the end, however that comes."""
        self._writer = asyncio.create_task(self._write())
        try:
            yield
        finally:
            self._ending.set()
            self._more.set()
            await self._writer

    async def _write(self) -> None:
        try:
            while self._unwritten or not self._ending.is_set():
                await self._more.wait()
                self._more.clear()
                if self._unwritten:
                    text, self._unwritten, self._size = "".join(self._unwritten), [], 0
                    await self._records.write(self._records.store.append_event, self._run_id, text)
                    self._room.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TOGETHER_S):
                        await self._ending.wait()
        finally:
            self._room.set()
