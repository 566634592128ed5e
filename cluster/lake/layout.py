"""Where things stand in the lake: keys, as a function of what they hold. All dates are UTC."""

from __future__ import annotations

import re
from typing import Final

from cluster.clock import utc
from cluster.journal.fact import Stream

LAYOUT_VERSION: Final = "v1"
# The streams whose facts become rows, in the order in which a batch is shipped.
ROW_STREAMS: Final = (Stream.USAGE, Stream.AUDIT)

_SEGMENT = re.compile(
    r"(?P<stream>usage|audit)/raw/v1/ingest_date=(?P<date>\d{4}-\d{2}-\d{2})/writer=(?P<writer>[a-z0-9.-]+)/"
    r"e(?P<epoch>\d+)-(?P<seq>\d+)\.parquet"
)


def raw_prefix(stream: Stream) -> str:
    """Return what the keys of all raw segments of a stream begin with."""
    return f"{stream}/raw/{LAYOUT_VERSION}/"


def quarantine_prefix(stream: Stream) -> str:
    """Return what the keys of all of a stream's objects in quarantine begin with."""
    return raw_prefix(stream).replace("/raw/", "/quarantine/", 1)


def _tail(ingest_us: int, writer_id: str, epoch: int, seq: int) -> str:
    return f"ingest_date={utc(ingest_us):%Y-%m-%d}/writer={writer_id}/e{epoch}-{seq:08d}"


def segment_key(stream: Stream, ingest_us: int, writer_id: str, epoch: int, seq: int) -> str:
    """Return the key of the shipper's `seq`-th segment of this epoch, sealed at `ingest_us`."""
    return f"{raw_prefix(stream)}{_tail(ingest_us, writer_id, epoch, seq)}.parquet"


def quarantine_key(segment: str, digest: str) -> str:
    """Return where rows go whose own key holds other rows; the row digest keeps one object for each content."""
    return f"{segment.replace('/raw/', '/quarantine/', 1).removesuffix('.parquet')}-{digest[:16]}.parquet"


def parse_segment_key(key: str) -> tuple[Stream, str, int, int] | None:
    """Return (stream, writer id, epoch, seq) of a raw segment's key, or None when it is none."""
    match = _SEGMENT.fullmatch(key)
    if not match:
        return None
    return Stream(match["stream"]), match["writer"], int(match["epoch"]), int(match["seq"])
