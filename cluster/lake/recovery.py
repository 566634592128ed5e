"""Where a shipper goes on: the state that the last one left in its journal, and the lock that keeps two apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ConflictError, IntegrityError
from cluster.journal.audit_event import AuditAction
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.lake.ship_log import CHECKPOINT, ShipState

SHIPPER = "shipper"
LOCK_NAME = ".shipper.lock"


@dataclass(slots=True)
class Recovered:
    """What an earlier life left, up to its last whole fact."""

    state: ShipState = field(default_factory=ShipState)
    # Of endings and breaks that may not be finished: `lost` events, and what was told of which journal.
    lost_ids: set[str] = field(default_factory=set)
    told: set[tuple[AuditAction, str]] = field(default_factory=set)

    def take(self, fact: Fact) -> None:
        """Take the next fact of a shipper's journal."""
        if fact.stream is Stream.SHIP:
            if fact.body.get("op") == CHECKPOINT:
                self.lost_ids.clear()
                self.told.clear()
            self.state.apply(fact.body)
        elif fact.stream is Stream.USAGE:
            self.lost_ids.add(str(fact.body.get("event_id")))
        elif fact.body.get("action") in (AuditAction.JOURNAL_END, AuditAction.JOURNAL_BROKEN):
            self.told.add((AuditAction(fact.body["action"]), str(fact.body.get("object_id"))))


def recover(directory: Path, own: JournalId) -> Recovered:
    """Return what the last shipper of this directory left, whatever node id it had; `own` is the new one's journal."""
    found = Recovered()
    for journal in list_journals(directory):
        if journal.writer_id.split(".")[0] != SHIPPER or journal == own:
            continue
        left = _replay(directory, journal)
        # A life that wrote no whole checkpoint did nothing: the checkpoint is what it writes first.
        if left.state.life > found.state.life:
            found = left
    return found


def _replay(directory: Path, journal: JournalId) -> Recovered:
    left = Recovered()
    reader = JournalReader(directory, journal)
    # A journal that was changed is taken up to there; the shipper raises the alarm when it reads it as one of its sources.
    with contextlib.suppress(IntegrityError):
        while facts := reader.read(10_000):
            for _, fact in facts:
                left.take(fact)
    return left


def lock_directory(directory: Path, wait_s: float) -> int:
    """Take the directory for this process's shipper and return the lock's descriptor, which frees it when it is closed.

    Raises ConflictError when another process holds it for longer than `wait_s` seconds.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise ConflictError(
                    f"Another shipper works on {directory}.", hint="There is one for each journal directory; end it first."
                ) from None
            time.sleep(0.05)
        else:
            return fd
