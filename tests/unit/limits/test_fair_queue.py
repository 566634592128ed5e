"""Turns between tenants: nobody is forgotten, nobody takes all, and nothing is kept of who has gone."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cluster.limits.fair_queue import QUANTUM_US, FairQueue
from tests.sizes import soak

TENANTS = ["a", "b", "c", "d"]
PLACES, ROOM = 8, 24


def test_one_that_comes_new_finds_a_place_however_much_another_asks() -> None:
    """Control: the threshold of places. One tenant alone has three quarters of them."""
    queue: FairQueue[str] = FairQueue(PLACES, ROOM)
    assert sum(queue.enter("greedy") for _ in range(100)) == PLACES * 3 // 4
    assert queue.enter("other")


def test_one_tenants_queue_leaves_room_for_anothers() -> None:
    """Control: the threshold of the waiting room."""
    queue: FairQueue[str] = FairQueue(PLACES, ROOM)
    while queue.enter("greedy"):
        pass
    waiting = [queue.wait("greedy", "g") for _ in range(100)]
    assert 0 < sum(ticket is not None for ticket in waiting) <= ROOM * 3 // 4
    assert queue.wait("other", "o") is not None


def test_what_one_tenant_piles_up_is_no_more_load_than_it_could_run() -> None:
    """Control: `load`. A long queue of one tenant is no reason for more processes; several tenants' queues are."""
    queue: FairQueue[str] = FairQueue(PLACES, 1_000)
    while queue.enter("greedy"):
        pass
    while queue.wait("greedy", "g") is not None:
        pass
    assert queue.waiting > 500
    assert queue.load() == PLACES * 3 // 4 * 2


@pytest.mark.parametrize("long_us", [QUANTUM_US // 10, QUANTUM_US, 30 * QUANTUM_US])
def test_tenants_that_always_wait_have_the_places_for_the_same_time(long_us: int) -> None:
    """Control: the charge for what a call took. Whose calls take 300 times as long begins that much more rarely."""
    queue: FairQueue[str] = FairQueue(4, 64)
    takes = {"short": QUANTUM_US // 10, "long": long_us}
    held: Counter[str] = Counter()
    under_way: list[tuple[int, str]] = []
    now = 0

    def fill() -> None:
        for tenant in takes:
            while queue.wait(tenant, tenant) is not None:
                pass
        while (tenant := queue.next()) is not None:
            heapq.heappush(under_way, (now + takes[tenant], tenant))

    fill()
    while now < 1_000 * long_us:
        now, tenant = heapq.heappop(under_way)
        held[tenant] += takes[tenant]
        queue.leave(tenant, takes[tenant])
        fill()
    assert 0.4 < held["short"] / held.total() < 0.6, held


class Turns(RuleBasedStateMachine):
    """Any order of coming, waiting, giving up, leaving and being called."""

    waiting: Bundle[tuple[str, int]] = Bundle("waiting")

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[str, int]] = FairQueue(PLACES, ROOM)
        self.running: Counter[str] = Counter()
        self.lines: dict[str, deque[int]] = defaultdict(deque)
        self.tickets: dict[tuple[str, int], int] = {}
        self.number = 0

    @rule(tenant=st.sampled_from(TENANTS))
    def come(self, tenant: str) -> None:
        if self.queue.enter(tenant):
            assert not self.lines[tenant], "a call overtook its own tenant's calls that wait"
            self.running[tenant] += 1

    @rule(target=waiting, tenant=st.sampled_from(TENANTS))
    def line_up(self, tenant: str) -> object:
        self.number += 1
        ticket = self.queue.wait(tenant, (tenant, self.number))
        if ticket is None:
            return multiple()
        self.lines[tenant].append(self.number)
        self.tickets[tenant, self.number] = ticket
        return (tenant, self.number)

    @rule(who=consumes(waiting))
    def give_up(self, who: tuple[str, int]) -> None:
        tenant, number = who
        assert self.queue.give_up(tenant, self.tickets[who]) == (number in self.lines[tenant])
        if number in self.lines[tenant]:
            self.lines[tenant].remove(number)

    @rule(tenant=st.sampled_from(TENANTS), held_us=st.integers(0, 50 * QUANTUM_US))
    def leave(self, tenant: str, held_us: int) -> None:
        if self.running[tenant]:
            self.running[tenant] -= 1
            self.queue.leave(tenant, held_us)

    @rule()
    def call(self) -> None:
        called = self.queue.next()
        if called is not None:
            tenant, number = called
            assert self.lines[tenant].popleft() == number, "not in order of arrival"
            self.running[tenant] += 1
            return
        free = PLACES - self.running.total()
        able = [t for t, line in self.lines.items() if line and self.running[t] < max(1, 3 * free)]
        assert not free or not able, "a place stays empty while somebody may have it"

    @invariant()
    def is_within_its_bounds(self) -> None:
        assert self.queue.running == self.running.total() <= PLACES
        assert self.queue.waiting == sum(map(len, self.lines.values())) <= ROOM
        busy = {t for t in TENANTS if self.running[t] or self.lines[t]}
        assert set(self.queue._tenants) == busy, "something is kept of a tenant that has gone"
        assert set(self.queue._turns) == {t for t in TENANTS if self.lines[t]}


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=soak(100, 3_000), stateful_step_count=60, deadline=None)
