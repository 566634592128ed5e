"""What the shipper tells auditors: one audit fact for each thing that is not as it should be, and for each journal's end."""

from __future__ import annotations

from typing import Any

from cluster.clock import Clock
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.lake.seal import Refused
from cluster.lake.ship_log import BROKEN
from cluster.lake.source import JournalSource


class ShipAudit:
    """Makes facts in the name of one shipper; whoever asks for them writes them."""

    def __init__(self, clock: Clock, actor: str, told: set[tuple[AuditAction, str]]) -> None:
        """Take what the life before has `told` of which journal: it may have died before it wrote what follows from that."""
        self._clock = clock
        self._actor = actor
        self._told = told

    def failed(self, action: AuditAction, object_id: str, reason: str, detail: dict[str, Any]) -> Fact:
        """Return the fact that something is wrong with an object, and why."""
        return self._fact(action, AuditOutcome.FAILED, object_id, reason, detail)

    def refused(self, refused: Refused) -> Fact:
        """Return the fact that a journal holds one that is no row, with that one as it was."""
        row = refused.row
        detail = {"journal": str(row.journal), "seq": row.seq, "body": ascii(row.body)[:4_000]}
        return self.failed(AuditAction.FACT_QUARANTINE, str(row.journal), refused.reason, detail)

    def broken(self, journal: JournalId, why: str, detail: dict[str, Any]) -> list[Fact]:
        """Return the alarm that a journal was changed, unless it was told, and, last, the fact for the shipper's own memory."""
        name, action = str(journal), AuditAction.JOURNAL_BROKEN
        alarm = [] if (action, name) in self._told else [self.failed(action, name, why, detail)]
        return [*alarm, Fact(Stream.SHIP, {"op": BROKEN, "journal": name})]

    def ended(self, source: JournalSource, torn_bytes: int) -> list[Fact]:
        """Return the fact that a dead process's journal was read to its end, unless it was told."""
        name, action = str(source.journal), AuditAction.JOURNAL_END
        if (action, name) in self._told:
            return []
        detail = {
            "last_seq": source.reader.position.seq,
            "torn_bytes": torn_bytes,
            "lost_calls": len(source.open_calls),
            "broken": source.broken,
        }
        outcome = AuditOutcome.FAILED if source.broken or torn_bytes else AuditOutcome.DONE
        return [self._fact(action, outcome, name, None, detail)]

    def _fact(
        self, action: AuditAction, outcome: AuditOutcome, object_id: str, reason: str | None, detail: dict[str, Any]
    ) -> Fact:
        event = AuditEvent.new(self._clock, action, outcome, actor=self._actor, object_id=object_id, reason=reason, detail=detail)
        return Fact(Stream.AUDIT, event.to_body())
