"""Nothing is gained and nothing lost: what became of every raw row, by the hour, from what says that plans are done."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from cluster.journal.fact import Stream
from cluster.lake.curation.done import FATES, Done
from cluster.lake.curation.keys import DONE_PREFIX, PLAN_PREFIX, done_key, plan_of
from cluster.lake.curation.plan import Plan
from cluster.lake.layout import parse_segment_key, raw_prefix
from cluster.storage.object_store import ObjectStore


@dataclass(slots=True)
class Conservation:
    """Figures by UTC hour (YYYY-MM-DDTHH) of the events' time; what they are is said at `Done`."""

    hours: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    reasons: Counter[str] = field(default_factory=Counter)
    # Raw segments that are not curated yet. While there are any, or anything is in quarantine, no period can be closed.
    waiting: list[str] = field(default_factory=list)

    def totals(self) -> Counter[str]:
        """Return the figures of all hours in one."""
        total: Counter[str] = Counter()
        for figures in self.hours.values():
            total.update(figures)
        return total

    def unbalanced(self) -> list[str]:
        """Return the hours whose raw rows are more or fewer than what became of them."""
        return [hour for hour, f in sorted(self.hours.items()) if f["raw"] != sum(f[fate] for fate in FATES)]


def hourly(store: ObjectStore) -> Conservation:
    """Return the lake's figures by hour; raises IntegrityError when a plan or its end is not as it was written."""
    found = Conservation()
    done: set[int] = set()
    for info in store.list(DONE_PREFIX):
        if (number := plan_of(info.key)) is not None:
            one = Done.from_bytes(number, store.get(done_key(number)))
            done.add(number)
            found.reasons.update(one.reasons)
            for hour, figures in one.hours.items():
                found.hours[hour].update(figures)
    taken: set[str] = set()
    for info in store.list(PLAN_PREFIX):
        if (number := plan_of(info.key)) in done and number is not None:
            taken.update(s.key for s in Plan.from_bytes(number, store.get(info.key)).segments)
    raw = (info.key for info in store.list(raw_prefix(Stream.USAGE)))
    found.waiting = [key for key in raw if parse_segment_key(key) is not None and key not in taken]
    return found
