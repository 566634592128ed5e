"""Curation beside the head's shipper: one looks after it, so that work is not done twice. Nothing rests on there being one."""

from __future__ import annotations

import asyncio
import logging

from cluster import wiring
from cluster.errors import SovereignError
from cluster.lake.curation.curator import CurationReport, Curator
from cluster.settings import Settings

log = logging.getLogger(__name__)

# The shipper's process has facts to ship besides: a plan of so many rows takes a second of a core and about 100 MB.
PLAN_ROWS = 50_000


class CurationLoop:
    """Takes a step on every interval, plan after plan while there are more, and says in the log what changes."""

    def __init__(self, settings: Settings) -> None:
        """Curate the lake of `settings`; opens nothing yet."""
        self._settings = settings
        self._curator: Curator | None = None
        self._said = ""

    async def run(self) -> None:
        """Curate until cancelled; a setting of 0 leaves it to `sovereign lake curate`."""
        while interval_s := self._settings.curate_interval_s:
            await asyncio.sleep(interval_s)
            while await asyncio.to_thread(self.step):
                pass

    def step(self) -> bool:
        """Carry out one plan; returns whether there may be more. What fails is said, and waits for the next interval."""
        try:
            # Not before it is needed: what can't be opened now may be later.
            self._curator = self._curator or wiring.build_curator(self._settings, max_plan_rows=PLAN_ROWS)
            report = self._curator.step(plans=1)
        except Exception as e:  # whatever it is, the facts are in the raw segments, and shipping goes on
            known = isinstance(e, SovereignError)
            self._say(f"usage is not curated: {e if known else repr(e)}", fault=None if known else e)
            return False
        self._say_of(report)
        return bool(report.planned)

    def _say_of(self, report: CurationReport) -> None:
        if report.reasons:
            found = ", ".join(f"{count} {reason}" for reason, count in sorted(report.reasons.items()))
            log.warning("usage went into quarantine and is not billed: %s", found)
        waits = "".join(f" {key}: {why}" for key, why in sorted(report.unreadable.items()))
        self._say(f"raw segments wait and are not curated:{waits}" if waits else "")

    def _say(self, line: str, fault: Exception | None = None) -> None:
        """Log a line when it is another than the one before, and when all is well again."""
        if line != self._said:
            log.warning(line or "usage is curated again", exc_info=fault)
        self._said = line
