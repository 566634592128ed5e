"""Conversations in one SQLite file per agent, opened when the first conversation is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import aiosqlite
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from cluster.errors import StorageError

# Another generation of the agent may still be closing the file.
BUSY_TIMEOUT_S = 5.0


class SqliteCheckpointStore:
    """The embedded CheckpointStore: `path` is the agent's own file, in write-ahead mode, readable by its owner alone.

    Survives any kill of any process; a power cut may lose the last turns, as the journal's facts of a call may.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saver: AsyncSqliteSaver | None = None
        self._opening = asyncio.Lock()

    async def saver(self) -> AsyncSqliteSaver:
        """Return the saver; raises StorageError that names the file when it cannot be opened."""
        if self._saver is None:
            async with self._opening:
                if self._saver is None:
                    opening = asyncio.ensure_future(self._open())
                    try:
                        await asyncio.shield(opening)
                    finally:
                        # Also for a call that is given up meanwhile: a connection halfway open would be nobody's.
                        self._saver = await opening
        return self._saver

    async def forget_steps(self, thread_id: str) -> None:
        """Drop all checkpoints of the conversation but the last; without this a file grows with the square of its turns."""
        saver = await self.saver()
        older = "thread_id = ? AND checkpoint_id < (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?)"
        async with saver.lock:
            for table in ("checkpoints", "writes"):
                await saver.conn.execute(f"DELETE FROM {table} WHERE {older}", (thread_id, thread_id))  # noqa: S608  # fixed names
            await saver.conn.commit()

    async def close(self) -> None:
        """Close the file."""
        async with self._opening:
            saver, self._saver = self._saver, None
            if saver is not None:
                await saver.conn.close()

    async def _open(self) -> AsyncSqliteSaver:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = await aiosqlite.connect(self._path, timeout=BUSY_TIMEOUT_S)
        except (OSError, sqlite3.Error) as e:
            raise StorageError(f"The conversations in {self._path} cannot be opened: {e}") from e
        try:
            # Only messages and plain values come back out: no pickle, and no class that a changed file might name.
            serde = JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)
            saver = AsyncSqliteSaver(connection, serde=serde)
            saver.jsonplus_serde = serde
            await saver.setup()
            await connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as e:
            await connection.close()
            raise StorageError(
                f"The conversations in {self._path} cannot be read: {e}",
                hint="Move the file away to start the agent's conversations anew.",
            ) from e
        return saver
