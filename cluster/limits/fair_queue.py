"""Who is next when more is asked than can run at once: places and a bounded waiting room, shared fairly between tenants.

Two known rules, both without a clock or a lock, for one event loop:

- *Whose turn*: surplus round robin (Adiseshu, Parulkar, Varghese 1996), the form of deficit round robin (Shreedhar, Varghese
  1995) for work whose size is known only afterwards. Each tenant that waits gets a quantum a round, in microseconds of a
  place; a call is charged what its tenant's calls took on average when it begins, and the rest when it has ended.
- *How much*: dynamic thresholds (Choudhury, Hahne 1998). A tenant holds at most SHARE times what is still free, so that there
  is always room for one that comes new, and one that is alone has three quarters of all.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")
# Microseconds of a place that each tenant gets a round.
QUANTUM_US: Final = 100_000
SHARE: Final = 3
# How much the last call counts in what a tenant's calls take on average: one part in so many.
SMOOTH: Final = 8


@dataclass(slots=True)
class _Tenant(Generic[T]):
    running: int = 0
    # Microseconds of a place that it may still have this round; below 0 what it had too much.
    credit_us: int = 0
    # What its calls take on average.
    usual_us: int = QUANTUM_US
    waiting: OrderedDict[int, T] = field(default_factory=OrderedDict)


class FairQueue(Generic[T]):
    """The places of one process; `T` is what stands for a call that waits."""

    def __init__(self, places: int, waiting: int, *, shared: bool = True) -> None:
        """Have so many places and room for so many to wait; without `shared` one tenant may have all of them."""
        self._places = places
        self._room = waiting
        self._share = SHARE if shared else places + waiting
        self.running = 0
        self.waiting = 0
        # Those that run or wait; bounded by places and waiting room.
        self._tenants: dict[str, _Tenant[T]] = {}
        # Those that wait, in order of their turns.
        self._turns: OrderedDict[str, _Tenant[T]] = OrderedDict()
        self._tickets = 0

    def enter(self, tenant: str) -> bool:
        """Take a place, and return whether there was one; a tenant's own calls that wait are not overtaken."""
        known = self._tenants.get(tenant)
        if known is None:
            known = _Tenant()
        if known.waiting or not self._may_run(known):
            return False
        self._tenants[tenant] = known
        self._begin(known)
        return True

    def wait(self, tenant: str, item: T) -> int | None:
        """Let `item` wait for a place, and return its ticket; None when the tenant has as much of the waiting room as it may."""
        known = self._tenants.get(tenant) or _Tenant()
        free = self._room - self.waiting
        if free <= 0 or len(known.waiting) >= max(1, self._share * free):
            return None
        self._tenants[tenant] = self._turns[tenant] = known
        self._tickets += 1
        known.waiting[self._tickets] = item
        self.waiting += 1
        return self._tickets

    def give_up(self, tenant: str, ticket: int) -> bool:
        """Wait no more; returns False when the ticket has had its turn already, and then it holds a place."""
        known = self._tenants.get(tenant)
        if known is None or known.waiting.pop(ticket, None) is None:
            return False
        self.waiting -= 1
        self._forget(tenant, known)
        return True

    def leave(self, tenant: str, held_us: int) -> None:
        """Give a place back that was held for so long."""
        known = self._tenants[tenant]
        known.running -= 1
        self.running -= 1
        known.credit_us += known.usual_us - held_us
        known.usual_us += (held_us - known.usual_us) // SMOOTH
        self._forget(tenant, known)

    def next(self) -> T | None:
        """Give a place to whoever's turn it is; None when nobody who waits may have one now."""
        if not self._turns or self.running >= self._places:
            return None
        able = [(name, known) for name, known in self._turns.items() if self._may_run(known)]
        if not able:
            return None
        short = [-known.credit_us for _, known in able if known.credit_us <= 0]
        if len(short) == len(able):
            # Nobody has credit left: as many rounds pass at once as the first to have some again needs.
            rounds = min(short) // QUANTUM_US + 1
            for _, known in able:
                known.credit_us = min(QUANTUM_US, known.credit_us + rounds * QUANTUM_US)
        name, known = next((name, known) for name, known in able if known.credit_us > 0)
        _, item = known.waiting.popitem(last=False)
        self.waiting -= 1
        self._begin(known)
        if not known.waiting:
            del self._turns[name]
        elif known.credit_us <= 0:
            self._turns.move_to_end(name)
        return item

    def load(self) -> int:
        """Return how much is to be done: what runs, and of each tenant that waits no more than it may have of the places.

        It is what more processes are started for, and what one tenant piles up must not be.
        """
        most = self._places * self._share // (self._share + 1) or 1
        return self.running + sum(min(len(known.waiting), most) for known in self._turns.values())

    def _may_run(self, known: _Tenant[T]) -> bool:
        free = self._places - self.running
        return free > 0 and known.running < max(1, self._share * free)

    def _begin(self, known: _Tenant[T]) -> None:
        known.running += 1
        self.running += 1
        known.credit_us -= known.usual_us

    def _forget(self, tenant: str, known: _Tenant[T]) -> None:
        if not known.waiting:
            self._turns.pop(tenant, None)
            if not known.running:
                del self._tenants[tenant]
