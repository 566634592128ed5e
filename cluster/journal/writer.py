"""The one who writes a journal: each fact is in the page cache when `append` returns, and on disk soon after."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NoReturn
from zlib import crc32

from cluster.clock import Clock, SystemClock
from cluster.errors import ConflictError, InvalidRequestError, JournalFullError, StorageError
from cluster.journal.fact import Fact
from cluster.journal.journal_id import JournalId, next_epoch
from cluster.journal.segment import RECORD, U64, SegmentHeader, chain_after, encode_record, genesis, segment_name

LOCK_NAME = "lock"
_pack_seq = U64.pack
_pack_head = RECORD.pack
SEGMENT_BYTES = 64 << 20
# The disk, a quota or a limit on files has no room.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_RETRY_S = 5.0


class JournalWriter:
    """One journal: the facts of one life of one process, in order, never appended to by another.

    Fails closed: when a fact cannot be written, `append` raises StorageError and whatever it stands for must not happen.
    """

    def __init__(
        self,
        directory: Path,
        writer_id: str,
        epoch: int,
        *,
        clock: Clock | None = None,
        sync_ms: int = 50,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Create the journal below `directory`; `sync_ms` is the longest time until a fact is forced to disk.

        Raises ConflictError when this or a later epoch of the writer exists, StorageError when the disk refuses.
        """
        if not 1 <= sync_ms <= 60_000 or segment_bytes < 1:
            raise InvalidRequestError("sync_ms must be 1 to 60000 and segment_bytes at least 1.")
        self.journal = JournalId(writer_id, epoch)
        self._clock = clock or SystemClock()
        self._segment_bytes = segment_bytes
        self._folder = self.journal.folder(directory)
        # Guards everything below; held for one write, never for a sync of many.
        self._lock = threading.Lock()
        # One sync at a time; those who wait here find that the one before has done their work.
        self._sync_lock = threading.Lock()
        self._seq = 0
        self._chain = genesis(self.journal)
        self._offset = 0
        self._synced_seq = 0
        self._dirty = False
        # Why nothing can be appended any more; empty while all is well.
        self._broken = ""
        # Folders whose entries for this journal are not on disk yet: the first sync does it, which a waking agent need not await.
        self._unsynced: tuple[Path, ...] = ()
        # Segments that are full and on disk; closed by the next sync, which may still hold their descriptor.
        self._retired: list[int] = []
        self._create(directory)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._syncer = threading.Thread(
            target=self._sync_dirty, args=(sync_ms / 1_000,), name=f"journal-sync-{self.journal}", daemon=True
        )
        self._syncer.start()
        _live.add(self)

    @property
    def writer_id(self) -> str:
        """Who writes."""
        return self.journal.writer_id

    @property
    def epoch(self) -> int:
        """In which life."""
        return self.journal.epoch

    @property
    def last_seq(self) -> int:
        """The number of the last fact written; 0 before the first."""
        return self._seq

    @property
    def synced_seq(self) -> int:
        """The number of the last fact that is known to be on disk."""
        return self._synced_seq

    def append(self, fact: Fact) -> int:
        """Write one fact and return its number, counted from 1; it survives any kill of this process from then on.

        Raises StorageError when it could not be written, JournalFullError for want of room; nothing of it is left then.
        """
        payload = fact.encode()
        with self._lock:
            seq = self._seq + 1
            number = _pack_seq(seq)
            # chain_after and encode_record in one place: this runs for each fact, and saves a tenth.
            chain = sha256(self._chain + number + payload).digest()
            record = _pack_head(len(payload), crc32(payload, crc32(number + chain)), seq, chain) + payload
            self._write(record, seq, chain)
        return seq

    def append_many(self, facts: Sequence[Fact]) -> int:
        """Write facts by one write and return the number of the last; a kill in between leaves a first part of them."""
        payloads = [f.encode() for f in facts]
        with self._lock:
            seq, chain, parts = self._seq, self._chain, []
            for payload in payloads:
                seq += 1
                chain = chain_after(chain, seq, payload)
                parts.append(encode_record(seq, chain, payload))
            if parts:
                self._write(b"".join(parts), seq, chain)
        return seq

    def sync(self) -> int:
        """Force every fact written so far to disk and return the number of the last; many callers share one sync.

        Raises StorageError when the disk refuses; the journal takes no more facts then, because what it holds is unknown.
        """
        want = self._seq
        with self._sync_lock:
            if self._synced_seq >= want and not self._retired:
                self._raise_if_broken()
                return self._synced_seq
            with self._lock:
                self._raise_if_broken()
                # Cleared before the sync: what is written during it makes the journal dirty again.
                self._dirty = False
                fd, seq, retired = self._fd, self._seq, self._retired
                self._retired = []
            try:
                os.fdatasync(fd)
                for folder in self._unsynced:
                    _sync_folder(folder)
                self._unsynced = ()
            except OSError as e:
                # After a failed sync the kernel may drop the pages: a second sync that succeeds would prove nothing.
                self._broken = f"it could not be synced: {e}"
                raise self._storage_error(self._broken) from e
            finally:
                for old in retired:
                    os.close(old)
            self._synced_seq = seq
            return seq

    def close(self) -> None:
        """Sync, and let go of the lock, so that readers know this journal has ended; closing twice does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        self._syncer.join()
        try:
            if not self._broken:
                self.sync()
        finally:
            with self._sync_lock, self._lock:
                self._broken = self._broken or "it is closed"
                self._release()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _sync_dirty(self, sync_s: float) -> None:
        # Looked at again in each round: `close` may have set both events just before this thread cleared the one.
        while not self._closing.is_set():
            self._wake.wait()
            if self._closing.wait(sync_s):
                return
            # Before the sync: a fact that is written during it wakes this thread again.
            self._wake.clear()
            # A failure stays in the journal: the next append or sync raises it.
            with contextlib.suppress(StorageError):
                self.sync()

    def _create(self, directory: Path) -> None:
        # The folder is made under another name and renamed when its lock is held and its first segment begun, so that a
        # reader never sees a journal without an owner. A rename onto a folder that holds files fails: create-only.
        parent, name = self._folder.parent, self._folder.name
        making = parent / f".{name}.{os.getpid()}.{threading.get_ident()}"
        self._lock_fd = self._fd = self._folder_fd = -1
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if next_epoch(directory, self.writer_id) > self.epoch:
                raise ConflictError(
                    f"The journal {self.journal} or a later one exists below {directory}.",
                    hint="Each life of a process writes an epoch of its own: take the next one.",
                )
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(mode=0o700)
            self._lock_fd = os.open(making / LOCK_NAME, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._folder_fd = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._begin_segment()
            making.rename(self._folder)
            self._unsynced = (self._folder, parent, directory)
        except OSError as e:
            self._release()
            shutil.rmtree(making, ignore_errors=True)
            if self._folder.exists():
                raise ConflictError(f"The journal {self.journal} was created by another process just now.") from e
            raise self._storage_error(f"it could not be created: {e}") from e

    def _begin_segment(self) -> None:
        header = SegmentHeader(self.journal, self._seq + 1, self._chain, self._clock.now_us()).encode()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        name = segment_name(self._seq + 1)
        fd = os.open(name, flags, 0o600, dir_fd=self._folder_fd)
        try:
            _write_whole(fd, header)
            if self._fd >= 0:
                os.fsync(fd)
                os.fsync(self._folder_fd)
        except OSError:
            os.close(fd)
            # Without this the next try would find the name taken.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder_fd)
            raise
        if self._fd >= 0:
            self._retired.append(self._fd)
        self._fd, self._offset, self._first_seq = fd, len(header), self._seq + 1

    def _write(self, record: bytes, seq: int, chain: bytes) -> None:
        if self._broken:
            self._raise_if_broken()
        if self._offset + len(record) > self._segment_bytes and self._seq >= self._first_seq:
            self._rotate()
        try:
            written = os.write(self._fd, record)
        except OSError as e:
            self._undo(str(e), full=e.errno in _FULL)
        if written != len(record):
            self._undo(f"the disk took {written} of {len(record)} bytes", full=True)
        self._seq, self._chain = seq, chain
        self._offset += len(record)
        if not self._dirty:
            self._dirty = True
            self._wake.set()

    def _rotate(self) -> None:
        # The full segment is on disk before the next one exists, so that only the last one can have a torn tail. It is
        # a wait on the way of a call, once in a hundred thousand facts, for at most `sync_ms` worth of data.
        try:
            os.fdatasync(self._fd)
            self._begin_segment()
        except OSError as e:
            raise self._storage_error(f"its next segment could not be begun: {e}", full=e.errno in _FULL) from e

    def _undo(self, why: str, *, full: bool) -> NoReturn:
        """Cut off what a failed write left, or give the journal up: half a record would hide all that follow it."""
        try:
            os.ftruncate(self._fd, self._offset)
        except OSError as e:
            self._broken = f"a write failed ({why}) and could not be undone ({e})"
        raise self._storage_error(self._broken or why, full=full and not self._broken)

    def _raise_if_broken(self) -> None:
        if self._broken:
            raise self._storage_error(self._broken)

    def _storage_error(self, why: str, *, full: bool = False) -> StorageError:
        kind = JournalFullError if full else StorageError
        return kind(
            f"The journal {self.journal} did not take a fact: {why}.",
            hint=f"Nothing happened that depends on it. Look at the disk below {self._folder}.",
            retry_after_s=FULL_RETRY_S if full else None,
        )

    def _release(self) -> None:
        for fd in (self._fd, self._folder_fd, self._lock_fd, *self._retired):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder_fd = self._lock_fd = -1
        self._retired = []

    def _forget_in_child(self) -> None:
        # The lock belongs to the open file, which a fork shares: a child that keeps it would make a dead parent look alive.
        self._broken = "it belongs to the parent of this process"
        self._closing.set()
        # Another thread of the parent may have held them at the fork.
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._release()


def _write_whole(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"the disk took {written} of {len(data)} bytes")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_live: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_live):
        writer._forget_in_child()


os.register_at_fork(after_in_child=_after_fork)
