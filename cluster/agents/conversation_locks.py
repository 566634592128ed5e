"""One turn at a time within a conversation, also when several processes answer for its agent."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path

from cluster.errors import StorageError

# Between tries while another process has the turn, which is rare: a conversation stays with its replica.
RETRY_FIRST_S, RETRY_LONGEST_S = 0.002, 0.05


class ConversationLocks:
    """Locks in one file beside an agent's conversations: one byte for each conversation, so that the file never grows.

    They are of the open file and not of the process, and end with it however it ends. Between the processes a turn is
    nobody's until one tries and gets it; within one process `Turns` keeps the order.
    """

    def __init__(self, path: Path) -> None:
        """Use the file at `path`, which is made with the first lock."""
        self._path = path
        self._fd = -1

    @asynccontextmanager
    async def held(self, thread_id: str) -> AsyncIterator[None]:
        """Wait for the lock of a conversation and hold it; raises StorageError when there can be no lock."""
        place = int.from_bytes(blake2b(thread_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 2
        pause_s = RETRY_FIRST_S
        # A try never waits. Waiting in a thread could not be ended when the call is given up, and the lock would stay.
        while not self._try(place):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)
        try:
            yield
        finally:
            if self._fd >= 0:  # closed, it let go of every lock
                _lock(self._fd, fcntl.F_UNLCK, place)

    def close(self) -> None:
        """Let go of every lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _try(self, place: int) -> bool:
        try:
            if self._fd < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            return _lock(self._fd, fcntl.F_WRLCK, place)
        except OSError as e:
            raise StorageError(f"The conversations' locks in {self._path} can't be had: {e}") from e


def _lock(fd: int, kind: int, place: int) -> bool:
    try:
        # struct flock: type, whence, start, length, and no process, because the lock is the open file's.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
