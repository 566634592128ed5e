"""The limiter's books, message by message: late ones change nothing, lost ones lose nothing, and only one limiter writes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.coordination.coordination import Op
from cluster.coordination.epochs import next_epoch
from cluster.errors import IntegrityError, UnavailableError
from cluster.identity.ids import uuid7
from cluster.limits.account import AccountId, Held
from cluster.limits.lease import Holder
from cluster.limits.limiter import NAME, Limiter, Report, UnknownHolderError
from tests.memory_coordination import MemoryCoordination

A = "tenant.acme.total.tokens"
BOUND = {A: 100}


def limiter(store: MemoryCoordination) -> Limiter:
    return Limiter(store, next_epoch(store, NAME))


@pytest.fixture
def store() -> MemoryCoordination:
    return MemoryCoordination()


def test_a_report_that_comes_late_changes_nothing(store: MemoryCoordination) -> None:
    """The older of two messages arrives last: what the newer one said stands, and nothing is granted twice."""
    books = limiter(store)
    epoch = books.open("j/e1", "")
    books.exchange(epoch, 1, {A: Report(need=50, want=50)}, BOUND)
    books.exchange(epoch, 3, {A: Report(settled=30, returned=20)}, BOUND)
    late = books.exchange(epoch, 2, {A: Report(settled=10, need=5, want=5)}, BOUND)
    assert (late[A].granted, late[A].used, late[A].taken) == (50, 30, 30)


def test_a_holder_that_was_given_up_gets_no_answer(store: MemoryCoordination) -> None:
    """Its leases were given to others: a message that was under way when it died opens nothing again."""
    books = limiter(store)
    epoch = books.open("j/e1", "")
    books.exchange(epoch, 1, {A: Report(need=50, want=50)}, BOUND)
    books.recover(epoch, {A: 10}, {A: {"r1": Held(20, "acme.a", 0)}})
    with pytest.raises(UnknownHolderError):
        books.exchange(epoch, 2, {A: Report(settled=10, returned=40)}, BOUND)
    assert books.use_of(A) == (10, 30)
    assert books.open("j/e2", "") > epoch


def test_a_new_limiter_knows_what_the_last_one_said_and_fences_it_off(store: MemoryCoordination) -> None:
    """Grants and held reservations are read again; the earlier life, if it still runs, can write nothing."""
    old = limiter(store)
    epoch, other = old.open("j/e1", ""), old.open("k/e1", "n2")
    old.exchange(epoch, 1, {A: Report(need=50, want=50)}, BOUND)
    b = "agent.acme.a.total.tokens"
    old.exchange(other, 1, {b: Report(need=20, want=20)}, {b: 20})
    old.recover(other, {}, {b: {"r1": Held(20, "acme.a", 7)}})
    new = limiter(store)
    assert new.held() == {"r1": {b: Held(20, "acme.a", 7)}}
    assert (new.use_of(A), new.use_of(b)) == ((0, 50), (0, 20))
    with pytest.raises(UnavailableError, match="Another limiter has begun"):
        old.exchange(epoch, 2, {A: Report(need=10, want=10)}, BOUND)
    new.resolve("r1", {b: 15})
    new.resolve("r1", {b: 15})
    assert limiter(store).use_of(b) == (15, 15)


def test_a_recovery_that_is_killed_midway_is_done_again(store: MemoryCoordination) -> None:
    """Each account's grant ends in one transaction with what becomes of it; the rest is the next life's."""
    b = "agent.acme.a.total.tokens"
    bounds = BOUND | {b: 100}
    books = limiter(store)
    epoch = books.open("j/e1", "")
    books.exchange(epoch, 1, {n: Report(need=40, want=40) for n in bounds}, bounds)
    left, write = [1], store.transact

    def once(ops: Sequence[Op]) -> None:
        if not left:
            raise UnavailableError("killed here")
        left.pop()
        write(ops)

    store.transact = once  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        books.recover(epoch, dict.fromkeys(bounds, 10), {})
    store.transact = write  # type: ignore[method-assign]
    books = limiter(store)
    books.recover(epoch, dict.fromkeys(bounds, 10), {})
    assert [books.use_of(n) for n in bounds] == [(10, 10), (10, 10)]
    assert not books.holders


def test_reports_that_can_not_be_are_refused(store: MemoryCoordination) -> None:
    """Nobody settles or returns more than was granted, or less than before."""
    books = limiter(store)
    epoch = books.open("j/e1", "")
    books.exchange(epoch, 1, {A: Report(need=50, want=50)}, BOUND)
    with pytest.raises(IntegrityError):
        books.exchange(epoch, 2, {A: Report(settled=30, returned=21)}, BOUND)
    for text in ("tenant", "tenant.acme.total.euros", ""):
        with pytest.raises(IntegrityError):
            AccountId.parse(text)


def test_a_lowered_bound_grants_nothing_more(store: MemoryCoordination) -> None:
    """What is out may be spent; nothing is added before enough came back."""
    books = limiter(store)
    epoch = books.open("j/e1", "")
    books.exchange(epoch, 1, {A: Report(need=80, want=80)}, BOUND)
    answer = books.exchange(epoch, 2, {A: Report(settled=70, need=1, want=9)}, {A: 60})
    assert (answer[A].granted, answer[A].bound, answer[A].used) == (80, 60, 70)


def test_a_call_reserves_on_all_accounts_or_none() -> None:
    """The second account has no room: nothing of the first is taken."""
    books = Limiter(store := MemoryCoordination(), next_epoch(store, NAME))
    b = "agent.acme.a.total.tokens"
    holder = Holder(books.open("j/e1", ""))
    asked = holder.ask({A: 30, b: 10}, ahead=False)
    assert asked is not None
    holder.apply(asked.number, books.exchange(asked.epoch, asked.number, asked.reports, BOUND | {b: 100}))
    assert not holder.reserve("r1", {A: 20, b: 20})
    assert holder.leases[A].room == 30
    assert holder.reserve("r2", {A: 30, b: 10})
    holder.settle("r2", {A: 99, b: 4})
    holder.settle("r2", {A: 1, b: 1})
    assert (holder.leases[A].settled, holder.leases[b].settled, holder.leases[b].room) == (30, 4, 6)


def test_threat_80_ten_thousand_open_calls_of_dead_holders_are_held(store: MemoryCoordination) -> None:
    """Control: what packs an account's value. Else nothing of them would be found out, and all of it blocked for ever."""
    books, bound = limiter(store), {A: 10**9}
    for life in range(4):
        epoch = books.open(f"j/e{life}", "")
        books.exchange(epoch, 1, {A: Report(need=10_000_000, want=10_000_000)}, bound)
        books.recover(epoch, {}, {A: {uuid7(): Held(4_000, "acme.planner", 1_790_000_000_000_000) for _ in range(2_500)}})
    assert books.use_of(A) == (0, 40_000_000)
    later = limiter(store)
    assert (len(later.held()), later.use_of(A)) == (10_000, (0, 40_000_000))
