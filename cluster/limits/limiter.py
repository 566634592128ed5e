"""The limiter's books: who was granted what of which account. What it answers stands in the coordination store before.

/limits/holders/<epoch>             who holds leases under this epoch, and the number of their last report
/limits/grants/<epoch>/<account>    what was granted to them, and what of it they settled and returned
/limits/accounts/<account>          what grants that ended have settled, and what is held of holders that died
/limits/held/<account>              says that something is
/limits/lost/<reservation>          what was settled as lost (lost.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Delete, Op, Set
from cluster.coordination.epochs import fence, increment
from cluster.errors import ConflictError, IntegrityError, UnavailableError
from cluster.limits.account import Account, Grant, Held
from cluster.limits.lost import FOLDER, Lost, LostReservations

NAME = "limiter"
# Accounts of one exchange at most, so that it is one transaction.
MAX_ACCOUNTS = 100


class UnknownHolderError(ConflictError):
    """No such holder has leases: it was taken for dead, and what it held was given to others. It must begin anew."""

    code = "unknown_holder"


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder says of one account: settled and returned in all, and what it asks for now."""

    settled: int = 0
    returned: int = 0
    # Without this much a call waits; with `want` the next ones will not have to.
    need: int = 0
    want: int = 0
    # Everything was settled or returned, and the holder forgets the account.
    end: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the limiter says of one account."""

    # In all, since the holder's first lease on it; 0 when it has none.
    granted: int
    bound: int
    # Settled, and settled or granted or held.
    used: int
    taken: int


@dataclass(slots=True)
class HolderRow:
    """Who holds leases under an epoch: the process that writes this journal on this node."""

    journal: str
    node: str
    number: int = 0
    accounts: set[str] = field(default_factory=set)


class Limiter:
    """For one thread. After an error of the store it is not known what stands there: begin a new one."""

    def __init__(self, coordination: Coordination, epoch: int) -> None:
        """Take over; `epoch` of the name `limiter` fences off every earlier life."""
        self._coordination = coordination
        self._fence = fence(NAME, epoch)
        self._accounts: dict[str, Account] = {}
        self.holders: dict[int, HolderRow] = {}
        self._load()
        rows = ((name, coordination.get(f"{FOLDER}/{name}")) for name in _children(coordination, FOLDER))
        self._lost = LostReservations((name, node.value) for name, node in rows if node is not None)

    def open(self, journal: str, node: str) -> int:
        """Return the epoch under which the process with this journal holds leases; the same when it asks again."""
        for epoch, row in self.holders.items():
            if row.journal == journal:
                return epoch
        epoch, op = increment(self._coordination, "limits.holders")
        row = HolderRow(journal, node)
        self._write([op, Create(_holder(epoch), _holder_value(row))])
        self.holders[epoch] = row
        return epoch

    def exchange(self, epoch: int, number: int, reports: Mapping[str, Report], bounds: Mapping[str, int]) -> dict[str, Answer]:
        """Take over a holder's reports and grant what there is; one that is older than another changes nothing.

        Raises UnknownHolderError for a holder that was given up, IntegrityError for reports that can't be.
        """
        row = self.holders.get(epoch)
        if row is None:
            raise UnknownHolderError(f"No leases are held under epoch {epoch}.", hint="Open a new one.")
        if number > row.number:
            row.number = number
            self._take_over(epoch, row, reports, bounds)
        return {name: self._answer(epoch, name, bounds[name]) for name in reports}

    def short(self, epoch: int, reports: Mapping[str, Report], bounds: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the accounts that lack what these reports need though it is not spent, and who may have some to return."""
        lacking: dict[str, list[int]] = {}
        for name, report in reports.items():
            account = self._account(name)
            own = account.grants.get(epoch) or Grant()
            if report.need > 0 and bounds[name] - account.taken < report.need <= bounds[name] - account.used:
                lacking[name] = [e for e, g in account.grants.items() if g is not own and g.outstanding > 0]
        return lacking

    def recover(self, epoch: int, settled: Mapping[str, int], opened: Mapping[str, Mapping[str, Held]]) -> None:
        """End a dead holder: what its journal says was settled is, what it says is open is held, the rest is free.

        `opened` has the open reservations of each account. It may be killed anywhere, and is done again then.
        """
        row = self.holders.get(epoch)
        if row is None:
            return
        for name in sorted(row.accounts):
            account = self._account(name)
            had = bool(account.held)
            account.end(epoch, settled.get(name, 0), dict(opened.get(name, {})))
            ops: list[Op] = [self._set_account(name, account), Delete(_grant(epoch, name))]
            self._write(ops + self._mark(name, account, had))
            row.accounts.discard(name)
            self._forget(name)
        self._write([Delete(_holder(epoch))])
        del self.holders[epoch]

    def held(self) -> dict[str, dict[str, Held]]:
        """Return every held reservation: by its id, what is held of which account."""
        found: dict[str, dict[str, Held]] = {}
        for name, account in self._accounts.items():
            for reservation, held in account.held.items():
                found.setdefault(reservation, {})[name] = held
        return found

    def resolve(self, reservation: str, used: Mapping[str, int], *, lost: bool = False) -> None:
        """Settle what a held reservation came to, by account; nothing of it where `used` says nothing.

        What was `lost` may yet be corrected. If its holder had been told so already, that is what it came to.
        """
        known = self._lost.of.get(reservation)
        used, ops = known.used if known is not None else used, list[Op]()
        found: dict[str, Held] = {}
        for name, account in self._accounts.items():
            if (held := account.held.get(reservation)) is not None:
                found[name] = held
                account.resolve(reservation, used.get(name, 0))
                ops += [self._set_account(name, account), *self._mark(name, account, True)]
        if not found:
            return
        if lost and known is None:
            ops += self._keep_lost(reservation, found, used)
        self._write(ops)
        for name in found:
            self._forget(name)

    def told(self, reservation: str, held: Mapping[str, Held], used: Mapping[str, int], *, lost: bool) -> Mapping[str, int]:
        """Return what a holder that lives is to settle of a reservation whose fate it asks for; if it asks again, the same.

        What it is told is `lost` may yet be corrected, so that is on record then.
        """
        if (known := self._lost.of.get(reservation)) is not None:
            return known.used
        if lost:
            self._write(self._keep_lost(reservation, held, used))
        return used

    def lost(self) -> dict[str, Lost]:
        """Return the lost reservations whose final word may yet come."""
        return {name: lost for name, lost in self._lost.of.items() if not lost.final}

    def correct(self, reservation: str, spent: Mapping[str, int]) -> None:
        """Let the final word on a lost reservation hold, by account; a second time does nothing."""
        lost = self._lost.of.get(reservation)
        if lost is None or lost.final:
            return
        ops = self._lost.close(reservation)
        for name, amount in lost.amounts.items():
            account = self._account(name)
            account.settled += max(0, min(spent.get(name, 0), amount) - lost.used.get(name, 0))
            ops.append(self._set_account(name, account))
        self._write(ops)
        for name in lost.amounts:
            self._forget(name)

    def forget_lost(self, now_us: int) -> None:
        """Give up the lost reservations of which nothing will be heard any more."""
        for name in self._lost.expired(now_us):
            self._write(self._lost.forget(name))

    def use_of(self, name: str) -> tuple[int, int]:
        """Return what of an account is used, and what is used or may yet be."""
        account = self._account(name)
        use = account.used, account.taken
        self._forget(name)
        return use

    def _keep_lost(self, reservation: str, held: Mapping[str, Held], used: Mapping[str, int]) -> list[Op]:
        one = next(iter(held.values()))
        settled = {name: min(used.get(name, 0), h.amount) for name, h in held.items()}
        return self._lost.keep(reservation, Lost(one.agent, one.until_us, {n: h.amount for n, h in held.items()}, settled))

    def _take_over(self, epoch: int, row: HolderRow, reports: Mapping[str, Report], bounds: Mapping[str, int]) -> None:
        ops: list[Op] = [Set(_holder(epoch), _holder_value(row))]
        for name, report in reports.items():
            account = self._account(name)
            known = name in row.accounts
            if report.end and not known:
                continue  # it ended before, and the answer was lost
            account.report(epoch, report.settled, report.returned)
            # A holder that did not hear of its last grant can't end it: it hears of it now.
            if report.end and known and not account.grants[epoch].outstanding:
                account.end(epoch, report.settled, {})
                row.accounts.discard(name)
                ops += [self._set_account(name, account), Delete(_grant(epoch, name))]
                continue
            before = account.grants.get(epoch, Grant()).granted
            account.grant(epoch, report.need, max(report.need, report.want), bounds[name])
            grant = account.grants.get(epoch)
            if grant is None or (not known and grant.granted == before):
                continue  # nothing was granted yet
            ops.append(_write_grant(epoch, name, grant, known))
            row.accounts.add(name)
        self._write(ops)
        for name in reports:
            self._forget(name)

    def _answer(self, epoch: int, name: str, bound: int) -> Answer:
        account = self._account(name)
        grant = account.grants.get(epoch)
        answer = Answer(grant.granted if grant else 0, bound, account.used, account.taken)
        self._forget(name)
        return answer

    def _account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            node = self._coordination.get(_account(name))
            account = self._accounts[name] = Account() if node is None else _read_account(name, node.value)
        return account

    def _forget(self, name: str) -> None:
        """Keep no account in memory of which nothing is granted or held."""
        account = self._accounts.get(name)
        if account is not None and not account.grants and not account.held:
            del self._accounts[name]

    def _set_account(self, name: str, account: Account) -> Op:
        path, value = _account(name), orjson.dumps(account.to_json())
        return Create(path, value) if self._coordination.get(path) is None else Set(path, value)

    def _mark(self, name: str, account: Account, had: bool) -> list[Op]:
        has = bool(account.held)
        if has == had:
            return []
        return [Create(_held(name), b"")] if has else [Delete(_held(name))]

    def _write(self, ops: list[Op]) -> None:
        try:
            self._coordination.transact([self._fence, *ops])
        except CoordinationConflictError as e:
            if e.path == self._fence.path:
                raise UnavailableError("Another limiter has begun; this one grants nothing any more.") from e
            raise

    def _load(self) -> None:
        for name in _children(self._coordination, "/limits/holders"):
            node = self._coordination.get(_holder(int(name)))
            if node is not None:
                stored = orjson.loads(node.value)
                self.holders[int(name)] = HolderRow(stored["journal"], stored["node"], stored["number"])
        for epoch, row in self.holders.items():
            for name in _children(self._coordination, f"/limits/grants/{epoch}"):
                grant = self._coordination.get(_grant(epoch, name))
                if grant is not None:
                    self._account(name).grants[epoch] = Grant(*orjson.loads(grant.value))
                    row.accounts.add(name)
        for name in _children(self._coordination, "/limits/held"):
            self._account(name)


def _children(coordination: Coordination, path: str) -> Iterable[str]:
    after = ""
    while names := coordination.children(path, after=after):
        yield from names
        after = names[-1]


def _read_account(name: str, value: bytes) -> Account:
    try:
        return Account.from_json(orjson.loads(value))
    except (KeyError, TypeError, ValueError) as e:
        raise IntegrityError(f"The stored account {name} can't be read: {e!r}.") from None


def _write_grant(epoch: int, name: str, grant: Grant, known: bool) -> Op:
    value = orjson.dumps([grant.granted, grant.settled, grant.returned])
    return Set(_grant(epoch, name), value) if known else Create(_grant(epoch, name), value)


def _holder_value(row: HolderRow) -> bytes:
    return orjson.dumps({"journal": row.journal, "node": row.node, "number": row.number})


def _holder(epoch: int) -> str:
    return f"/limits/holders/{epoch}"


def _grant(epoch: int, name: str) -> str:
    return f"/limits/grants/{epoch}/{name}"


def _account(name: str) -> str:
    return f"/limits/accounts/{name}"


def _held(name: str) -> str:
    return f"/limits/held/{name}"
