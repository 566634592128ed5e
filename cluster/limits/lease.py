"""The holder's side: what this process may spend without asking. A call reserves on all of its accounts or on none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cluster.limits.limiter import MAX_ACCOUNTS, Answer, Report

# So much more than was drawn since the last exchange is asked for ahead.
AHEAD = 4
NOTHING: Final[Mapping[str, int]] = {}


@dataclass(slots=True)
class Lease:
    """What is held of one account."""

    granted: int = 0
    settled: int = 0
    returned: int = 0
    # By calls under way.
    reserved: int = 0
    # Reserved since the last exchange, which says how much the next ones will need.
    drawn: int = 0
    # What the limiter said last.
    bound: int = 0
    used: int = 0
    heard: bool = False
    # Its end was reported and not answered yet: nothing may be reserved on it.
    ending: bool = False
    # Something was settled or returned that the limiter does not know.
    changed: bool = False

    @property
    def room(self) -> int:
        """What may be reserved now."""
        return 0 if self.ending else self.granted - self.settled - self.returned - self.reserved


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message to the limiter; the answer to any but the last one is passed over."""

    epoch: int
    number: int
    reports: dict[str, Report]


class Holder:
    """The leases of one process, under the epoch that the limiter gave it."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.leases: dict[str, Lease] = {}
        # Calls under way: what each has reserved of which account.
        self.reservations: dict[str, Mapping[str, int]] = {}
        self._number = 0
        self._asked: Exchange | None = None
        # Accounts that were called back, until the limiter has said what was granted of them.
        self._called: set[str] = set()

    def lacking(self, amounts: Mapping[str, int]) -> dict[str, int]:
        """Return by account what there is no room for; empty when the call may be reserved."""
        lacks: dict[str, int] = {}
        for name, amount in amounts.items():
            lease = self.leases.get(name)
            room = lease.room if lease is not None else 0
            if room < amount:
                lacks[name] = amount - max(0, room)
        return lacks

    def reserve(self, reservation: str, amounts: Mapping[str, int]) -> bool:
        """Reserve `amounts` on all of these accounts or none; False when one has no room."""
        leases = self.leases
        for name, amount in amounts.items():
            lease = leases.get(name)
            if lease is None or lease.room < amount:
                return False
        for name, amount in amounts.items():
            lease = leases[name]
            lease.reserved += amount
            lease.drawn += amount
        self.reservations[reservation] = amounts
        return True

    def settle(self, reservation: str, used: Mapping[str, int]) -> None:
        """End a reservation: what was used of it is spent, the rest is room again. A second time does nothing."""
        amounts = self.reservations.pop(reservation, None)
        if amounts is None:
            return
        for name, amount in amounts.items():
            lease = self.leases[name]
            lease.reserved -= amount
            lease.settled += min(used.get(name, 0), amount)
            lease.changed = True

    def rebound(self, bounds: Mapping[str, int]) -> None:
        """Take these for the bounds of now, until the limiter says otherwise: one that was raised is worth asking again."""
        for name, bound in bounds.items():
            if (lease := self.leases.get(name)) is not None and lease.heard:
                lease.bound = bound

    def give_back(self, names: Iterable[str]) -> bool:
        """Return all room on these accounts, also what is granted and was not heard of; True when there is to be an exchange."""
        held = [name for name in names if name in self.leases]
        self._called.update(held)
        for name in held:
            lease = self.leases[name]
            lease.returned += max(0, lease.room)
            lease.changed = True
        return bool(held)

    def end_idle(self) -> None:
        """End every lease of which nothing is reserved or was drawn since the last exchange."""
        for lease in self.leases.values():
            if not lease.reserved and not lease.drawn and not lease.ending:
                lease.returned += lease.room
                lease.ending = True

    def low(self, names: Iterable[str] | None = None) -> list[str]:
        """Return the accounts, of all or of these, that the next calls might find without room."""
        leases = self.leases
        wanted = leases if names is None else names
        return [name for name in wanted if (lease := leases[name]).drawn and lease.room < lease.drawn]

    def ask(self, needs: Mapping[str, int], waiting: Mapping[str, int] = NOTHING, *, ahead: bool = True) -> Exchange | None:
        """Return the next message to the limiter: what changed, what the first call waits for (`needs`), what others might want.

        `waiting` is what all calls wait for together.
        None when there is nothing to say. One message at a time: the answer to an earlier one counts no more.
        """
        for name in needs:
            self.leases.setdefault(name, Lease())
        low = set(self.low()) if ahead else set()
        reports: dict[str, Report] = {}
        order = [*needs, *(n for n in self.leases if n not in needs)]
        for name in order:
            lease = self.leases[name]
            need = 0 if lease.ending else needs.get(name, 0)
            want = max(need, waiting.get(name, 0)) + AHEAD * lease.drawn if name in low or need else 0
            if need or want or lease.changed or lease.ending:
                reports[name] = Report(lease.settled, lease.returned, need, want if ahead else need, lease.ending)
                if len(reports) == MAX_ACCOUNTS:
                    break
        if not reports:
            return None
        self._number += 1
        self._asked = Exchange(self.epoch, self._number, reports)
        return self._asked

    def apply(self, number: int, answers: Mapping[str, Answer]) -> list[str]:
        """Take over the limiter's answer to message `number`; return the accounts whose lease ended with it."""
        if self._asked is None or number != self._asked.number:
            return []
        asked, self._asked = self._asked, None
        ended: list[str] = []
        for name, answer in answers.items():
            lease, said = self.leases[name], asked.reports[name]
            lease.bound, lease.used, lease.heard = answer.bound, answer.used, True
            if said.end and not answer.granted:
                ended.append(name)
                del self.leases[name]
                self._called.discard(name)
                continue
            lease.granted, lease.ending, lease.drawn = max(lease.granted, answer.granted), False, 0
            if name in self._called:
                self._called.discard(name)
                lease.returned += max(0, lease.room) if not said.need else 0
            lease.changed = (lease.settled, lease.returned) != (said.settled, said.returned)
        return ended
