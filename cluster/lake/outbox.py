"""What is sealed and not known to be stored: each intent's objects, until all of them are in the store."""

from __future__ import annotations

from pathlib import Path

from cluster.journal.audit_event import AuditAction
from cluster.journal.fact import Stream
from cluster.journal.writer import JournalWriter
from cluster.lake.reseal import Resealed, reseal
from cluster.lake.seal import Sealed
from cluster.lake.ship_audit import ShipAudit
from cluster.lake.ship_log import Intent, IntentKey, Planned, ShipState
from cluster.lake.ship_report import ShipReport
from cluster.lake.upload import Uploader


class Outbox:
    """Stores the objects of the state's pending intents under their keys, and closes each intent when they are stored."""

    def __init__(self, directory: Path, uploader: Uploader, *, writer: JournalWriter, state: ShipState, audit: ShipAudit) -> None:
        self._directory = directory
        self._uploader = uploader
        self._writer = writer
        self._state = state
        self._audit = audit
        # Sealed objects of pending intents of this life; those of earlier lives are made again.
        self._ready: dict[IntentKey, list[Sealed]] = {}
        # Objects of pending intents that are in the store, so that a later try neither counts nor reports them again.
        self._stored: set[str] = set()

    def add(self, intent: Intent, sealed: list[Sealed]) -> None:
        """Take an intent that is on disk, and its objects."""
        self._state.apply(intent.to_fact().body)
        self._ready[intent.key] = sealed

    def ship(self, report: ShipReport) -> None:
        """Store all that is pending; raises StoreAwayError when an object is not known to be stored; a later try goes on."""
        for key in list(self._state.pending):
            if key not in self._ready:
                self._seal_again(self._state.pending[key], report)
            intent = self._state.pending[key]
            for planned, one in zip(intent.objects, self._ready[key], strict=True):
                if planned.key not in self._stored:
                    self._put(intent, planned, one, report)
                    self._stored.add(planned.key)
            shipped = intent.shipped()
            self._writer.append(shipped)
            self._state.apply(shipped.body)
            self._ready.pop(key)
            self._stored.clear()

    def _seal_again(self, intent: Intent, report: ShipReport) -> None:
        again = reseal(self._directory, intent, self._state)
        if again.intent is intent:
            self._ready[intent.key] = again.sealed
        else:
            self._replan(intent, again, report)

    def _replan(self, intent: Intent, again: Resealed, report: ShipReport) -> None:
        """Tell what can't be made as it was planned, and take up the intent for the rest."""
        facts = [self._audit.refused(r) for r in again.refused]
        segments = [p.key for p in intent.objects]
        broken = [b for b in again.broken if b.planned.journal not in self._state.broken]
        for read in broken:
            # Nobody knows yet whether an earlier try reached the store: if it did, the facts after the break are in there.
            detail = {"last_good_seq": read.good.seq, "sealed_seq": read.planned.end.seq, "segments": segments}
            facts += self._audit.broken(read.planned.journal, read.why, detail)
        changed = [] if again.broken else segments
        for key in changed:
            why = "this release makes other rows of the facts that were sealed: these are stored, unless those were before"
            detail = {"expected": [p.digest for p in intent.objects], "found": [p.digest for p in again.intent.objects]}
            facts.append(self._audit.failed(AuditAction.SEGMENT_CONFLICT, key, why, detail))
        # The intent comes last: it puts a broken journal's position back to the break, and the mark keeps that from being read.
        self._writer.append_many([*facts, again.intent.to_fact()])
        # On disk before the first PUT, as every intent.
        self._writer.sync()
        for fact in facts:
            if fact.stream is Stream.SHIP:
                self._state.apply(fact.body)
        self.add(again.intent, again.sealed)
        report.broken_journals += len(broken)
        report.conflicts += len(changed)
        report.refused_facts += len(again.refused)

    def _put(self, intent: Intent, planned: Planned, one: Sealed, report: ShipReport) -> None:
        conflict = self._uploader.put(planned, one, intent.earlier)
        if conflict:
            detail = {"expected": planned.digest, "found": conflict.found_digest, "rows": one.rows, "kept": conflict.quarantine}
            why = "other rows stand under the key of a segment; ours are in quarantine"
            self._writer.append(self._audit.failed(AuditAction.SEGMENT_CONFLICT, planned.key, why, detail))
            report.conflicts += 1
        else:
            report.segments += 1
            report.usage_rows += one.rows if planned.stream is Stream.USAGE else 0
            report.audit_rows += one.rows if planned.stream is Stream.AUDIT else 0
