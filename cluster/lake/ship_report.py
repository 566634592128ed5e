"""What one step of the shipper did, as counts for logs and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class ShipReport:
    """Counts of one step; `backlog_bytes` and `live_journals` say how things stand after it."""

    # Objects that are now in the lake, and their rows.
    segments: int = 0
    usage_rows: int = 0
    audit_rows: int = 0
    # Calls of dead processes that had no last usage event.
    lost_events: int = 0
    # Dead journals that were read to the end, and the bytes after their last whole fact.
    ended_journals: int = 0
    torn_bytes: int = 0
    # Journals that were found changed: alarm.
    broken_journals: int = 0
    # Keys under which other rows stood, or whose rows cannot be made again: alarm.
    conflicts: int = 0
    # Facts that are no rows; they are in the audit log.
    refused_facts: int = 0
    # Bytes in journals that are not in the lake yet.
    backlog_bytes: int = 0
    live_journals: int = 0
    # Why the store took nothing; empty when it did. The facts stay in the journals and are shipped by a later step.
    store_error: str = ""
    # Seconds until the store is tried again.
    retry_after_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
