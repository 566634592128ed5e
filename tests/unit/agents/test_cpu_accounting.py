"""CPU apportioned among calls: exact in sum, equal in shares."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.agents.cpu_accounting import CpuAccountant
from tests.sizes import soak


class Clock:
    def __init__(self) -> None:
        self.ns = 123_456_789

    def __call__(self) -> int:
        return self.ns


@settings(max_examples=soak(200, 5000), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5_000_000)), max_size=80))
def test_sums_equal_the_clock(events: list[tuple[int, int]]) -> None:
    """Whoever enters and leaves when, every microsecond of the clock is charged to exactly one call or to idleness."""
    clock = Clock()
    accountant = CpuAccountant(clock)
    start_us = clock.ns // 1_000
    active: set[int] = set()
    charged = 0
    for who, ns in events:
        clock.ns += ns
        if who in active:
            active.remove(who)
            cpu_us = accountant.leave(str(who))
            assert cpu_us >= 0
            charged += cpu_us
        else:
            active.add(who)
            accountant.enter(str(who))
    charged += sum(accountant.so_far(str(who)) for who in active)
    assert charged + accountant.pending_us + accountant.idle_us == clock.ns // 1_000 - start_us
    assert accountant.pending_us < max(1, len(active))


def test_shares_are_equal_while_calls_overlap() -> None:
    """Alone a call pays for everything; together each pays its equal part; idle time is nobody's."""
    clock = Clock()
    clock.ns = 0
    accountant = CpuAccountant(clock)
    clock.ns = 1_000_000
    accountant.enter("a")
    clock.ns = 3_000_000
    accountant.enter("b")
    clock.ns = 9_000_000
    assert accountant.so_far("b") == 3_000
    assert accountant.leave("a") == 2_000 + 3_000
    clock.ns = 10_000_000
    assert accountant.leave("b") == 3_000 + 1_000
    clock.ns = 15_000_000
    accountant.enter("c")
    assert accountant.leave("c") == 0
    assert accountant.idle_us == 1_000 + 5_000


def test_real_clock_and_misuse() -> None:
    """The default clock is this process's CPU; entering twice or leaving without entering is an error."""
    before = time.process_time_ns()
    accountant = CpuAccountant()
    accountant.enter("a")
    sum(range(200_000))
    assert 0 < accountant.leave("a") <= (time.process_time_ns() - before) // 1_000 + 1
    accountant.enter("b")
    with pytest.raises(ValueError, match="already"):
        accountant.enter("b")
    with pytest.raises(KeyError):
        accountant.leave("a")
