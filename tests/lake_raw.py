"""Raw segments without a shipper, for the tests of curation: any rows, under any key."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.journal.fact import Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.usage_event import UsageEvent
from cluster.lake.layout import segment_key
from cluster.lake.schema import USAGE
from cluster.lake.seal import Stretch, seal
from cluster.storage.object_store import ObjectStore
from tests.lake_samples import AGENT, START_US, admitted, final

JOURNAL = JournalId(AGENT, 1)
SHIPPER = JournalId("shipper.n1", 1)
# When the rows of the tests are sealed; their calls begin at START_US.
INGEST_US = START_US + 60_000_000


def uuid7_at(us: int, number: int) -> str:
    """Return the `number`-th id of a millisecond."""
    return str(uuid.UUID(int=us // 1_000 << 80 | 7 << 76 | 2 << 62 | number))


def event(number: int, *, start_us: int = START_US, **changes: Any) -> UsageEvent:
    """Return the final event of the `number`-th call."""
    call = admitted(uuid7_at(start_us, number), start_time=start_us)
    return final(call, **({"tokens_output": number} | changes))


def table_of(events: Sequence[UsageEvent], *, first_seq: int = 1, ingest_us: int = INGEST_US) -> pa.Table:
    """Return rows as they are sealed, also those that sealing would refuse."""
    rows = [e.to_body() | _sealed(first_seq + i, ingest_us) for i, e in enumerate(events)]
    arrays = [pa.array([r[f.name] for r in rows], f.type) for f in USAGE]
    return pa.Table.from_arrays(arrays, schema=USAGE)


def _sealed(seq: int, ingest_us: int) -> dict[str, Any]:
    return {"ingest_time": ingest_us, "writer_id": JOURNAL.writer_id, "writer_epoch": JOURNAL.epoch, "writer_seq": seq}


def segment(
    events: Sequence[UsageEvent], seq: int, *, writer: JournalId = SHIPPER, first_seq: int = 0, ingest_us: int = INGEST_US
) -> tuple[str, bytes]:
    """Return the key and bytes of the `seq`-th segment of a shipper, whose facts follow the one before when not said."""
    first_seq = first_seq or (seq - 1) * 100 + 1
    table = table_of(events, first_seq=first_seq, ingest_us=ingest_us)
    stretches = [Stretch(JOURNAL, first_seq, seq * 100)]
    sealed = seal(Stream.USAGE, table, writer=writer, seq=seq, ingest_us=ingest_us, stretches=stretches)
    return segment_key(Stream.USAGE, ingest_us, writer.writer_id, writer.epoch, seq), sealed.data


def put(store: ObjectStore, *objects: tuple[str, bytes]) -> None:
    for key, data in objects:
        store.put_if_absent(key, data, sha256="")


def curated(store: ObjectStore, prefix: str = "usage/events/v1/") -> list[dict[str, Any]]:
    """Return all rows under a prefix, in the order of keys."""
    tables = [pq.read_table(pa.BufferReader(store.get(o.key))) for o in store.list(prefix)]
    return [row for table in tables for row in table.to_pylist()]
