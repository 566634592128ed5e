"""Reading a journal from a position on, while it is written or after its writer died."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import IntegrityError
from cluster.journal.fact import Fact, decode_fact
from cluster.journal.journal_id import JournalId
from cluster.journal.segment import (
    MAX_HEADER_BYTES,
    RECORD,
    U64,
    chain_after,
    decode_header,
    decode_record,
    genesis,
    list_segments,
    segment_name,
)
from cluster.journal.writer import LOCK_NAME

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a journal just after record `seq`: `segment` is the first seq of its file, `offset` counts its bytes.

    With `chain`, the chain value there, a journal that was changed behind the position is found out.
    """

    seq: int
    segment: int
    offset: int
    chain: bytes

    def to_body(self) -> list[Any]:
        """Return plain values for a fact's body."""
        return [self.seq, self.segment, self.offset, self.chain]

    @classmethod
    def from_body(cls, body: list[Any]) -> Position:
        """Return the position that `to_body` wrote."""
        seq, segment, offset, chain = body
        return cls(seq, segment, offset, bytes(chain))


def start_of(journal: JournalId) -> Position:
    """Return the position before a journal's first record."""
    return Position(0, 0, 0, genesis(journal))


def is_alive(directory: Path, journal: JournalId) -> bool:
    """Return whether the process that writes the journal still lives, which is whether its lock is held."""
    try:
        fd = os.open(journal.folder(directory) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask at once do not see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class JournalReader:
    """Reads one journal forward; it never changes a byte of it.

    A record that is not whole at the very end is no fact yet (alive) or a torn tail (dead). One that is wrong and has
    whole records after it was changed: IntegrityError, and nothing after it is read.
    """

    def __init__(self, directory: Path, journal: JournalId, position: Position | None = None) -> None:
        """Stand at `position`, or before the first record."""
        self.directory = directory
        self.journal = journal
        self.position = position or start_of(journal)
        self._folder = journal.folder(directory)

    def is_alive(self) -> bool:
        """Return whether the writer still lives. Ask before the last read: only a dead journal has an end."""
        return is_alive(self.directory, self.journal)

    def read(self, limit: int = 10_000) -> list[tuple[int, Fact]]:
        """Return up to `limit` facts with their numbers and move on; an empty list says that there is no more now.

        Raises IntegrityError that names file and record; the facts before it were returned by the reads before.
        """
        start = self.position
        if self._is_at_end():
            return []
        try:
            return self._read(limit)
        except IntegrityError:
            if self.position.seq == start.seq:
                raise
            # What is whole before the break comes first: read it again, up to there; the next read raises.
            good = self.position.seq - start.seq
            self.position = start
            return self._read(min(limit, good))

    def sync(self) -> None:
        """Force what was read to disk, so that nothing is passed on that a power cut could take back here."""
        if self.position.segment:
            # The segments before this one were synced when they were left. A sync works on the file, whoever wrote it.
            with self._path(self.position.segment).open("rb") as f:
                os.fdatasync(f.fileno())

    def torn_bytes(self) -> int:
        """Return how many bytes after the position hold no fact; of meaning once the journal is dead and read to its end."""
        return self.backlog_bytes()

    def backlog_bytes(self) -> int:
        """Return how many bytes the journal has after the position."""
        total = 0
        for first in list_segments(self._folder):
            if first >= self.position.segment:
                total += (self._folder / segment_name(first)).stat().st_size
        return max(0, total - self.position.offset)

    def _is_at_end(self) -> bool:
        """Return whether nothing stands after the position, without opening a file: an idle journal is asked every second."""
        segments = list_segments(self._folder)
        if not segments or segments[-1] != self.position.segment:
            return False
        return self._path(self.position.segment).stat().st_size == self.position.offset

    def _read(self, limit: int) -> list[tuple[int, Fact]]:
        facts: list[tuple[int, Fact]] = []
        segments = list_segments(self._folder)
        at = self.position
        if at.segment and at.segment not in segments:
            raise self._broken(self._path(at.segment), "the file is gone", at.seq)
        if not at.segment and not self._enter(1, segments):
            return facts
        while len(facts) < limit:
            self._read_segment(limit - len(facts), facts)
            if len(facts) >= limit or not self._enter(self.position.seq + 1, segments):
                return facts
        return facts

    def _enter(self, first: int, segments: list[int]) -> bool:
        """Move to the start of the segment that begins with record `first`; return False when there is none yet."""
        later = [s for s in segments if s > self.position.segment]
        if not later:
            return False
        path = self._path(first)
        if later[0] != first:
            raise self._broken(self._path(later[0]), f"the segment that begins with record {first} is missing before it")
        if self.position.segment:
            # The writer leaves a segment only when it is whole and on disk.
            rest = self._path(self.position.segment).stat().st_size - self.position.offset
            if rest > 0:
                raise self._broken(
                    self._path(self.position.segment), f"{rest} bytes follow the last whole record of a full segment"
                )
        with path.open("rb") as f:
            head = f.read(MAX_HEADER_BYTES)
            decoded = decode_header(head)
            if decoded is None:
                if len(later) > 1 or self._has_record(head + f.read(READ_BYTES), 0, first - 1):
                    raise self._broken(path, "its header is not whole")
                return False
        header, length = decoded
        if header.journal != self.journal or header.first_seq != first or header.previous != self.position.chain:
            raise self._broken(path, f"its header says it follows another record than {first - 1} of {self.journal}")
        self.position = Position(self.position.seq, first, length, self.position.chain)
        return True

    def _read_segment(self, limit: int, facts: list[tuple[int, Fact]]) -> None:
        path = self._path(self.position.segment)
        with path.open("rb", buffering=0) as f:
            size = os.fstat(f.fileno()).st_size
            if size < self.position.offset:
                raise self._broken(path, f"it has {size} bytes, but {self.position.offset} were read from it before")
            want = READ_BYTES
            while limit > 0:
                data = os.pread(f.fileno(), want, self.position.offset)
                if not data:
                    return
                taken = self._take(path, data, limit, facts)
                limit -= taken
                if taken:
                    want = READ_BYTES
                elif len(data) < want:
                    # All that there is holds no whole record here; if one follows, this is no tail.
                    if self._has_record(data, 0, self.position.seq):
                        raise self._broken(path, "it is not whole, and whole records follow it")
                    return
                else:
                    want *= 4

    def _take(self, path: Path, data: bytes, limit: int, facts: list[tuple[int, Fact]]) -> int:
        at, taken, offset = self.position, 0, 0
        seq, chain = at.seq, at.chain
        try:
            while taken < limit:
                record = decode_record(data, offset)
                if record is None:
                    break
                number, claimed, payload = record
                if number != seq + 1 or claimed != chain_after(chain, number, payload):
                    raise self._broken(path, "it does not follow from the one before it", seq + 1)
                try:
                    facts.append((number, decode_fact(payload)))
                except IntegrityError as e:
                    raise self._broken(path, e.detail, number) from None
                seq, chain = number, claimed
                offset += RECORD.size + len(payload)
                taken += 1
        finally:
            self.position = Position(seq, at.segment, at.offset + offset, chain)
        return taken

    def _has_record(self, data: bytes, offset: int, seq: int) -> bool:
        """Return whether a whole record with a number above `seq` stands anywhere in `data` after `offset`."""
        most = min(len(data) // RECORD.size, 4_096)
        for number in range(seq + 1, seq + 2 + most):
            wanted = U64.pack(number)
            found = data.find(wanted, offset + 8)
            while found >= 0:
                record = decode_record(data, found - 8)
                if record is not None and record[0] == number:
                    return True
                found = data.find(wanted, found + 1)
        return False

    def _path(self, first: int) -> Path:
        return self._folder / segment_name(first)

    def _broken(self, path: Path, why: str, seq: int | None = None) -> IntegrityError:
        return IntegrityError(
            f"The journal {self.journal} was changed after it was written: {path}, record {seq or self.position.seq + 1}: {why}.",
            hint="Nothing after this record is taken. Keep the file as it is, and compare it with a backup.",
        )
