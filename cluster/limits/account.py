"""An account as the limiter keeps it: what was settled, what is granted to whom, and never more than the bound together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from cluster.errors import IntegrityError

UNITS = ("tokens", "micro_usd", "calls")


@dataclass(frozen=True, slots=True)
class AccountId:
    """Whose (`scope` and `owner`: tenant acme; agent acme.planner), for which window, in which unit."""

    scope: str
    owner: str
    window: str
    unit: str

    def __str__(self) -> str:
        return f"{self.scope}.{self.owner}.{self.window}.{self.unit}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that `str` printed; raises IntegrityError."""
        scope, _, rest = text.partition(".")
        owner, _, last = rest.rpartition(".")
        owner, _, window = owner.rpartition(".")
        if not owner or last not in UNITS:
            raise IntegrityError(f"{text[:120]!r} is no account.")
        return cls(scope, owner, window, last)


@dataclass(slots=True)
class Grant:
    """What one holder was granted of an account, ever; of it, what it settled and what it returned. They only grow."""

    granted: int = 0
    settled: int = 0
    returned: int = 0

    @property
    def outstanding(self) -> int:
        """What the holder may still spend or return."""
        return self.granted - self.settled - self.returned


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation whose holder died: it counts as spent until it is known what became of it."""

    amount: int
    # tenant.agent that it was for.
    agent: str
    # When the call's time was up, in microseconds since 1970 UTC.
    until_us: int


@dataclass(slots=True)
class Account:
    """One bound's use."""

    # By grants that ended.
    settled: int = 0
    grants: dict[int, Grant] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """What was settled, as far as holders have said."""
        return self.settled + sum(g.settled for g in self.grants.values())

    @property
    def taken(self) -> int:
        """What was settled, and what may yet be."""
        out = sum(g.granted - g.returned for g in self.grants.values())
        return self.settled + out + sum(h.amount for h in self.held.values())

    def grant(self, epoch: int, need: int, want: int, bound: int) -> int:
        """Grant up to `want`, of a scarce rest only `need`, and return how much; 0 when less than `need` is free.

        What is left is not handed out in one piece: the others would have to call it back.
        """
        free = bound - self.taken
        given = min(want, max(need, free // 4), free)
        if given <= 0 or given < need:
            return 0
        self.grants.setdefault(epoch, Grant()).granted += given
        return given

    def report(self, epoch: int, settled: int, returned: int) -> None:
        """Take over what a holder says of its grant, in all; raises IntegrityError for less than before or more than it has."""
        grant = self.grants.get(epoch) or Grant()
        if settled < grant.settled or returned < grant.returned or settled + returned > grant.granted:
            raise IntegrityError(f"Holder {epoch} reports {settled} settled and {returned} returned of {grant}.")
        grant.settled, grant.returned = settled, returned

    def end(self, epoch: int, settled: int, held: dict[str, Held]) -> None:
        """End a grant: `settled` of it is spent, `held` may be, the rest is free."""
        grant = self.grants.pop(epoch, None)
        if grant is None:
            return
        self.settled += max(settled, grant.settled)
        self.held |= held

    def resolve(self, reservation: str, used: int) -> None:
        """Settle what a held reservation came to; a second time does nothing."""
        held = self.held.pop(reservation, None)
        if held is not None:
            self.settled += min(used, held.amount)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads: all but the grants, which are stored by holder."""
        return {"settled": self.settled, "held": {r: [h.amount, h.agent, h.until_us] for r, h in self.held.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the account without its grants; raises KeyError, TypeError or ValueError for anything else."""
        return cls(int(value["settled"]), {}, {r: Held(*h) for r, h in value["held"].items()})
