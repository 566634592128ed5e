"""One node with journals, a shipper and a store in a folder, for the tests of the lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.clock import FakeClock
from cluster.errors import StorageError
from cluster.journal.audit_event import AuditAction
from cluster.journal.fact import Stream
from cluster.journal.writer import JournalWriter
from cluster.lake.layout import raw_prefix
from cluster.lake.ship import Shipper
from cluster.lake.verify import verify_raw
from cluster.storage.local_object_store import LocalObjectStore
from cluster.storage.object_store import PutOutcome
from tests.lake_samples import AGENT


class MoodyStore(LocalObjectStore):
    """The local store, which can be away, lose its answers, or overwrite."""

    away = False
    lose_answers = False
    overwrite = False
    puts = 0

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        self.puts += 1
        if self.away:
            raise StorageError("the store is away")
        if self.overwrite:
            (self.root / key).unlink(missing_ok=True)
        outcome = super().put_if_absent(key, data, sha256=sha256)
        if self.lose_answers and not key.startswith("_probe/"):
            raise StorageError("the answer was lost")
        return outcome


class Node:
    """One node's journals, its store and its clock."""

    def __init__(self, folder: Path) -> None:
        self.journals = folder / "journal"
        self.store = MoodyStore(folder / "lake")
        self.clock = FakeClock()

    def agent(self, epoch: int = 1, writer_id: str = AGENT) -> JournalWriter:
        return JournalWriter(self.journals, writer_id, epoch, clock=self.clock)

    def shipper(self, node_id: str = "n1", **options: Any) -> Shipper:
        return Shipper.open(self.journals, self.store, node_id, clock=self.clock, lock_wait_s=0, **options)

    def rows(self, stream: Stream = Stream.USAGE) -> list[dict[str, Any]]:
        keys = [o.key for o in self.store.list(raw_prefix(stream))]
        return [row for key in keys for row in pq.read_table(pa.BufferReader(self.store.get(key))).to_pylist()]

    def ids(self) -> list[str]:
        return sorted(r["event_id"] for r in self.rows())

    def audits(self, action: AuditAction) -> list[dict[str, Any]]:
        return [r for r in self.rows(Stream.AUDIT) if r["action"] == action]

    def check(self) -> None:
        for stream in (Stream.USAGE, Stream.AUDIT):
            assert list(map(str, verify_raw(self.store, stream))) == []
