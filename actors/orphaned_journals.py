"""The journals of nodes that are gone: shipped by the head's shipper, as long as their folders can be reached from there.

Who may ship a folder is decided by its lock alone. A node that comes back takes its own up again within an interval.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field

from cluster import wiring
from cluster.errors import ConflictError, SovereignError
from cluster.journal.journal_id import list_journals
from cluster.lake.recovery import lock_directory
from cluster.lake.ship import Shipper
from cluster.settings import Settings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class OrphanedJournals:
    """Ships what nodes left that are not there any more. Not for use by several threads at once."""

    settings: Settings
    # Those whose journals are being shipped from here.
    _shippers: dict[str, Shipper] = field(default_factory=dict)
    # Those of which everything was shipped, until they come back.
    _done: set[str] = field(default_factory=set)

    def step(self, alive: Collection[str]) -> dict[str, str]:
        """Ship once for each node that left journals and is not `alive`; returns what keeps any of them from being shipped."""
        for name in [n for n in self._shippers if n in alive]:
            self._shippers.pop(name).close()
        self._done.difference_update(alive)
        waiting: dict[str, str] = {}
        for name in sorted(self._left() - set(alive) - self._done):
            try:
                if shipper := self._shipper(name):
                    report = shipper.step()
                    if report.store_error:
                        waiting[name] = report.store_error
                    elif not report.live_journals and not report.backlog_bytes:
                        log.info("everything that node %s left is in the lake", name)
                        self._shippers.pop(name).close()
                        self._done.add(name)
            except (SovereignError, OSError) as e:
                waiting[name] = str(e)
                log.warning("the journals of node %s wait: %s", name, e)
        return waiting

    def close(self) -> None:
        """Let go of every folder."""
        while self._shippers:
            with contextlib.suppress(SovereignError):
                self._shippers.popitem()[1].close()

    def _left(self) -> set[str]:
        folder = self.settings.nodes_dir
        return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()

    def _shipper(self, name: str) -> Shipper | None:
        """Return the shipper of a node's journals, or None when it left none."""
        if (known := self._shippers.get(name)) is not None:
            return known
        settings = self.settings.of_node(name)
        if not list_journals(settings.journal_dir):
            return None
        # Asked before a journal is opened for it, of which each try would leave one more.
        try:
            os.close(lock_directory(settings.journal_dir, 0.0))
        except ConflictError:
            raise ConflictError(f"The shipper of node {name} still lives.") from None
        shipper = self._shippers[name] = wiring.build_shipper(settings)
        log.warning("node %s is gone; its journals are shipped from here", name)
        return shipper
