"""The bytes of a journal segment: a header, then records, each chained to the one before it by SHA-256.

```
header = "SOVJRNL\\n" | u16 format | u32 epoch | u64 first_seq | u64 created_us | 32 bytes chain before it
         | u16 n | n bytes writer id | u32 crc
record = u32 n | u32 crc | u64 seq | 32 bytes chain | n bytes payload
```
Integers are big-endian. A record's CRC-32 covers seq, chain and payload; its chain is SHA-256(chain before it | seq | payload).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.errors import IntegrityError
from cluster.journal.fact import MAX_FACT_BYTES
from cluster.journal.journal_id import JournalId

MAGIC: Final = b"SOVJRNL\n"
FORMAT_VERSION: Final = 1
RECORD: Final = struct.Struct(">IIQ32s")
_FIXED: Final = struct.Struct(">8sHIQQ32sH")
_U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
# The longest header: a reader that holds this many bytes holds all of it.
MAX_HEADER_BYTES: Final = _FIXED.size + 200 + _U32.size


def genesis(journal: JournalId) -> bytes:
    """Return the chain value before the first record, which differs for each journal so that none passes for another."""
    return hashlib.sha256(f"sovereign-journal\n{journal}\n".encode()).digest()


def segment_name(first_seq: int) -> str:
    """Return the file name of the segment that begins with record `first_seq`."""
    return f"{first_seq:020d}.seg"


def list_segments(folder: Path) -> list[int]:
    """Return the first seq of every segment in a journal's folder, rising."""
    try:
        return sorted(int(p.stem) for p in folder.iterdir() if p.suffix == ".seg" and p.stem.isdecimal())
    except FileNotFoundError:
        return []


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What stands at the beginning of a segment file."""

    journal: JournalId
    first_seq: int
    # Chain value of record first_seq - 1.
    previous: bytes
    # When the segment was begun, in microseconds since 1970 UTC.
    created_us: int

    def encode(self) -> bytes:
        """Return the header's bytes."""
        writer = self.journal.writer_id.encode("ascii")
        fixed = (MAGIC, FORMAT_VERSION, self.journal.epoch, self.first_seq, self.created_us, self.previous, len(writer))
        head = _FIXED.pack(*fixed) + writer
        return head + _U32.pack(zlib.crc32(head))


def decode_header(data: bytes) -> tuple[SegmentHeader, int] | None:
    """Return the header at the start of `data` and its length in bytes, or None when it is not whole.

    Raises IntegrityError when the header is whole and of a format that this program does not read.
    """
    if len(data) < _FIXED.size:
        return None
    magic, version, epoch, first_seq, created_us, previous, length = _FIXED.unpack_from(data)
    end = _FIXED.size + length
    if magic != MAGIC or length > 200 or len(data) < end + _U32.size or _U32.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        return None
    if version != FORMAT_VERSION:
        raise IntegrityError(
            f"A journal segment has format {version}; this program reads {FORMAT_VERSION}.",
            hint="It was written by a newer release: read it with that release.",
        )
    journal = JournalId(data[_FIXED.size : end].decode("ascii"), epoch)
    return SegmentHeader(journal, first_seq, previous, created_us), end + _U32.size


def chain_after(previous: bytes, seq: int, payload: bytes) -> bytes:
    """Return the chain value of record `seq` that follows one with the chain value `previous`."""
    return hashlib.sha256(previous + U64.pack(seq) + payload).digest()


def encode_record(seq: int, chain: bytes, payload: bytes) -> bytes:
    """Return a record's bytes; `chain` is its own chain value."""
    crc = zlib.crc32(payload, zlib.crc32(U64.pack(seq) + chain))
    return RECORD.pack(len(payload), crc, seq, chain) + payload


def decode_record(data: bytes, offset: int) -> tuple[int, bytes, bytes] | None:
    """Return (seq, chain, payload) of the record at `offset`, or None when it is not whole or its CRC does not hold."""
    if len(data) - offset < RECORD.size:
        return None
    length, crc, seq, chain = RECORD.unpack_from(data, offset)
    start = offset + RECORD.size
    if length > MAX_FACT_BYTES or len(data) - start < length:
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(data[offset + 8 : start])) != crc:
        return None
    return seq, chain, payload
