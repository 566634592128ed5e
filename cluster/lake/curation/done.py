"""What says that a plan is carried out: its objects and its figures, the same whoever carried it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from cluster.errors import IntegrityError
from cluster.lake.curation.document import from_bytes, to_bytes
from cluster.lake.curation.keys import done_key

# What becomes of a raw row: in every hour, raw = curated + quarantined + duplicate + superseded.
FATES: Final = ("curated", "quarantined", "duplicate", "superseded")


@dataclass(frozen=True, slots=True)
class CuratedObject:
    """An object that a plan wrote. Its rows' event times lie from `from_us` to `to_us`, both included."""

    key: str
    rows: int
    row_digest: str
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class Done:
    """A plan's outcome. `hours` counts rows by the UTC hour of their event time and by fate, and under `raw` all of them.

    Besides, `settled` and `lost` count the curated rows of those kinds, and `revived` the losses, curated by earlier plans,
    that turned out to be none: a call is lost when lost − revived says so.
    """

    number: int
    plan_sha256: str
    objects: tuple[CuratedObject, ...]
    hours: Mapping[str, Mapping[str, int]]
    # How many rows went into quarantine for each reason.
    reasons: Mapping[str, int]

    def totals(self) -> Counter[str]:
        """Return the hours' figures in one."""
        total: Counter[str] = Counter()
        for figures in self.hours.values():
            total.update(figures)
        return total

    def to_bytes(self) -> bytes:
        """Return the document as it is stored."""
        return to_bytes(asdict(self))

    @classmethod
    def from_bytes(cls, number: int, data: bytes) -> Done:
        """Return what is stored under the key of `number`; raises IntegrityError."""
        key = done_key(number)
        content = from_bytes(key, data)
        try:
            objects = tuple(CuratedObject(**o) for o in content["objects"])
            done = cls(content["number"], content["plan_sha256"], objects, content["hours"], content["reasons"])
        except (KeyError, TypeError) as e:
            raise IntegrityError(f"{key} is not whole: {e}.") from None
        if done.number != number or done.to_bytes() != data:
            raise IntegrityError(f"{key} is not as it was written.")
        return done
