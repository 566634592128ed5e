"""A plan: which raw segments are curated together, and all from outside that this takes to be the same rows for everybody."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from cluster.errors import IntegrityError
from cluster.lake.curation.document import from_bytes, to_bytes
from cluster.lake.curation.keys import plan_key


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A raw segment as it was when it was planned; whoever carries the plan out takes no other rows under its key."""

    key: str
    writer: str
    epoch: int
    seq: int
    rows: int
    row_digest: str
    # Of the object's bytes: its version, for people. What counts is the digest of the rows.
    sha256: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The `number`-th plan, from 1. Created once; what it says holds for good, whatever its maker knew or did not know."""

    number: int
    # The SHA-256 of the plan before; empty for the first. So an edited plan is named by the one behind it.
    previous_sha256: str
    # The planner's clock, in microseconds since 1970 UTC: no event may be later than that by more than the tolerance.
    planned_us: int
    # How many columns a row had in the planner's release.
    columns: int
    segments: tuple[PlannedSegment, ...]
    # Names in these segments that the planner asked for and that nobody knew.
    unknown_tenants: tuple[str, ...] = ()
    unpriced_models: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Return how many raw rows it takes in."""
        return sum(s.rows for s in self.segments)

    def to_bytes(self) -> bytes:
        """Return the plan as it is stored."""
        return to_bytes(asdict(self))

    @classmethod
    def from_bytes(cls, number: int, data: bytes) -> Plan:
        """Return the plan that is stored under the key of `number`; raises IntegrityError."""
        key = plan_key(number)
        content = from_bytes(key, data)
        try:
            segments = tuple(PlannedSegment(**segment) for segment in content.pop("segments"))
            values = {f.name: content[f.name] for f in fields(cls) if f.name != "segments"}
        except (KeyError, TypeError) as e:
            raise IntegrityError(f"{key} is not a whole plan: {e}.") from None
        for name in ("unknown_tenants", "unpriced_models"):
            values[name] = tuple(values[name])
        plan = cls(segments=segments, **values)
        # A document that says more, or the same in another way, was not written by a planner.
        if plan.number != number or plan.to_bytes() != data:
            raise IntegrityError(f"{key} is not as plan {number} was written.")
        return plan
