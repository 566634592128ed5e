"""The shipper: from the node's journals into the lake, each fact once, whatever is killed and when.

Intent, PUT, shipped: before a segment is stored, its key and what is in it are on disk in the shipper's own journal. Whoever
goes on after a kill makes the same rows again and stores them under the same key, create-only. A step is a plain call
without threads; what it did is in its report.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from cluster.clock import Clock, SystemClock
from cluster.errors import IntegrityError
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals, next_epoch
from cluster.journal.reader import JournalReader, is_alive
from cluster.journal.writer import JournalWriter
from cluster.lake.backoff import Backoff
from cluster.lake.batch import Rows, build_tables, no_rows, plan_batch
from cluster.lake.outbox import Outbox
from cluster.lake.recovery import SHIPPER, lock_directory, recover
from cluster.lake.removal import remove_journals
from cluster.lake.seal import Refused, Row
from cluster.lake.ship_audit import ShipAudit
from cluster.lake.ship_log import ENDED, REMOVED, Read
from cluster.lake.ship_report import ShipReport
from cluster.lake.source import JournalSource, open_source
from cluster.lake.upload import StoreAwayError, Uploader
from cluster.lake.waiting import waiting_bytes
from cluster.storage.object_store import ObjectStore

# After so many facts of its own, or so long, the shipper writes a checkpoint, so that a later life goes on from there.
CHECKPOINT_FACTS: Final = 5_000
CHECKPOINT_S: Final = 3_600
# Bounds of one batch and of one step; what is left waits for the next.
MAX_READS: Final = 1_000
MAX_BATCHES: Final = 64


class Shipper:
    """The one shipper of a journal directory. Not for use by several threads at once."""

    def __init__(
        self,
        journal_dir: Path,
        store: ObjectStore,
        *,
        writer: JournalWriter,
        clock: Clock | None = None,
        max_rows: int = 20_000,
        keep_ended_s: int = 86_400,
        lock_wait_s: float = 5.0,
        backoff: Backoff | None = None,
    ) -> None:
        """Take over from the shipper before, if any; `writer` is a fresh journal of this process in `journal_dir`.

        A batch holds at most `max_rows` facts. A journal of a dead process is removed `keep_ended_s` seconds after all of
        it was shipped, a broken one never. Raises ConflictError when another shipper of the directory lives for longer
        than `lock_wait_s`.
        """
        self._directory = journal_dir
        self._writer = writer
        self._clock = clock or SystemClock()
        self._max_rows = max_rows
        self._keep_ended_us = keep_ended_s * 1_000_000
        self._seq = 0
        self._sources: dict[JournalId, JournalSource] = {}
        self._backoff = backoff or Backoff()
        self._retry_at_us = 0
        self._lock_fd = lock_directory(journal_dir, lock_wait_s)
        try:
            self._before = recover(journal_dir, writer.journal)
            self._state = self._before.state
            self._audit = ShipAudit(self._clock, writer.writer_id, self._before.told)
            self._outbox = Outbox(journal_dir, Uploader(store), writer=writer, state=self._state, audit=self._audit)
            self._state.life += 1
            self._checkpoint()
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    def open(
        cls, journal_dir: Path, store: ObjectStore, node_id: str, *, clock: Clock | None = None, sync_ms: int = 50, **options: Any
    ) -> Shipper:
        """Return a shipper with a new journal of its own, `shipper.<node_id>`; takes and raises what the constructor does."""
        writer_id = f"{SHIPPER}.{node_id}"
        writer = JournalWriter(journal_dir, writer_id, next_epoch(journal_dir, writer_id), clock=clock, sync_ms=sync_ms)
        return cls(journal_dir, store, writer=writer, clock=clock, **options)

    def step(self, *, seal: bool = True) -> ShipReport:
        """Ship what the journals hold now and return the counts; with `seal=False` only what was sealed before.

        When the store does not answer, the report says so and when it is tried again; no fact is dropped. Raises
        StorageError when the shipper's own journal cannot be written, ConfigurationError when the store overwrites.
        """
        report = ShipReport()
        if self._clock.monotonic_us() >= self._retry_at_us:
            try:
                self._run(report, seal)
                self._backoff.succeeded()
            except StoreAwayError as e:
                report.store_error = str(e)
                if report.segments:  # it takes some, and is asked again soon
                    self._backoff.succeeded()
                self._retry_at_us = self._clock.monotonic_us() + int(self._backoff.failed(e.retry_after_s) * 1_000_000)
            except BaseException:
                # Readers may stand behind facts that no intent names: the next step begins where the journal says.
                self._sources.clear()
                raise
        report.retry_after_s = max(0, self._retry_at_us - self._clock.monotonic_us()) / 1_000_000
        self._measure(report)
        return report

    def waiting_bytes(self) -> int:
        """Return how many bytes are not known to be in the lake; for any thread, also while a step waits for the store."""
        return waiting_bytes(self._directory, self._state, self._writer.journal)

    def close(self) -> None:
        """Let go of the directory and close the journal; what is not shipped is shipped by the next life."""
        try:
            self._writer.close()
        finally:
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def __enter__(self) -> Shipper:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, report: ShipReport, seal: bool) -> None:
        self._outbox.ship(report)
        todo = list_journals(self._directory) if seal else []
        for _ in range(MAX_BATCHES):
            if todo:
                todo = self._ship_batch(todo, report)
            elif seal and self._end_journals(report):
                # What is told of those that ended is in our own journal now, and ships like everything else.
                todo = [self._writer.journal]
            else:
                break
        age_us = self._clock.monotonic_us() - self._checkpoint_us
        if self._writer.last_seq - self._checkpoint_seq >= CHECKPOINT_FACTS or age_us >= CHECKPOINT_S * 1_000_000:
            self._checkpoint()
            self._remove_old()

    def _ship_batch(self, journals: list[JournalId], report: ShipReport) -> list[JournalId]:
        """Read, seal and ship one batch; return the journals in which there may be more."""
        rows, reads, refused, left = no_rows(), list[Read](), list[Refused](), self._max_rows
        again: list[JournalId] = []
        for journal in journals:
            if left <= 0 or len(reads) >= MAX_READS:
                again.append(journal)
                continue
            source = self._source(journal, report)
            if source is None:
                continue
            start = source.reader.position
            try:
                facts = source.read(left)
            except IntegrityError as e:
                self._break(source, e.detail, report)
                continue
            left -= len(facts)
            refused += source.take_refused()
            if facts:
                again.append(journal)
            found = [(f.stream, Row(journal, seq, f.body)) for seq, f in facts if f.stream in rows]
            for stream, row in found:
                rows[stream].append(row)
            if found:
                reads.append(Read(journal, start, source.reader.position, source.low()))
        if reads or refused:
            self._intend(rows, reads, refused, report)
            self._outbox.ship(report)
            again.append(self._writer.journal)
        return list(dict.fromkeys(again))

    def _intend(self, rows: Rows, reads: list[Read], refused: list[Refused], report: ShipReport) -> None:
        ingest_us = self._clock.now_us()
        self._seq += 1
        tables, wrong = build_tables(rows, ingest_us)
        facts = [self._audit.refused(r) for r in (*refused, *wrong)]
        own = self._writer.journal
        first = self._state.first_uncovered
        intent, sealed = plan_batch(own, self._seq, ingest_us, reads=reads, tables=tables, first=first)
        if intent.objects:
            for read in reads:
                JournalReader(self._directory, read.journal, read.end).sync()
            facts.append(intent.to_fact())
        self._writer.append_many(facts)
        if intent.objects:
            # On disk before the first PUT: else a later life would store the same rows under another key.
            self._writer.sync()
            self._outbox.add(intent, sealed)
        report.refused_facts += len(refused) + len(wrong)

    def _source(self, journal: JournalId, report: ShipReport) -> JournalSource | None:
        """Return the journal's source, or None when nothing is read from it any more."""
        source = self._sources.get(journal)
        if source is None and journal not in self._state.ended:
            source = open_source(self._directory, journal, self._state.low(journal), self._state.position(journal))
            self._sources[journal] = source
            if journal in self._state.broken:
                source.broken = source.broken or "it was found changed by an earlier shipper"
            elif source.broken:
                self._break(source, source.broken, report)
        return None if source is None or source.broken else source

    def _break(self, source: JournalSource, why: str, report: ShipReport) -> None:
        facts = self._audit.broken(source.journal, why, {"last_good_seq": source.reader.position.seq})
        self._writer.append_many(facts)
        self._state.apply(facts[-1].body)
        source.broken = why
        report.broken_journals += 1

    def _end_journals(self, report: ShipReport) -> bool:
        """Account for the dead journals that were read to the end; return whether there were any."""
        done = [s for s in self._sources.values() if s.drained or (s.broken and not is_alive(self._directory, s.journal))]
        for source in done:
            self._end(source, report)
            del self._sources[source.journal]
        return bool(done)

    def _end(self, source: JournalSource, report: ShipReport) -> None:
        name = str(source.journal)
        # Not those that a life before had written when it was killed before it wrote the end.
        lost = [e for e in source.lost() if e.event_id not in self._before.lost_ids]
        facts = [Fact(Stream.USAGE, e.to_body()) for e in lost]
        torn = source.reader.torn_bytes()
        facts += self._audit.ended(source, torn)
        ended = Fact(Stream.SHIP, {"op": ENDED, "journal": name, "at_us": self._clock.now_us()})
        self._writer.append_many([*facts, ended])
        self._state.apply(ended.body)
        report.ended_journals += 1
        report.lost_events += len(lost)
        report.torn_bytes += torn

    def _checkpoint(self) -> None:
        for journal in [j for j in self._state.ended if not j.folder(self._directory).exists()]:
            # A broken one is remembered even so: put back from a backup, it would be shipped again from its first fact on.
            if journal not in self._state.broken:
                self._state.apply({"op": REMOVED, "journal": str(journal)})
        self._checkpoint_seq = self._writer.append_many(self._state.checkpoint())
        self._checkpoint_us = self._clock.monotonic_us()
        self._writer.sync()

    def _remove_old(self) -> None:
        """Remove the journals that ended long ago, but no broken one; a checkpoint after their end is on disk."""
        before = self._clock.now_us() - self._keep_ended_us
        remove_journals(
            self._directory, [j for j, at in self._state.ended.items() if at < before and j not in self._state.broken]
        )

    def _measure(self, report: ShipReport) -> None:
        report.backlog_bytes = self.waiting_bytes()
        others = (source for journal, source in self._sources.items() if journal != self._writer.journal)
        report.live_journals = sum(not source.broken and not source.drained for source in others)
