"""Fewer places while the loop is late and others are there, all of them otherwise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.limits.pace import FEWEST, LATE_US, Pace

MOST = 256
LATE = LATE_US + 1


def test_what_one_tenant_has_is_cut_down_while_others_wait_behind_it() -> None:
    """A dozen looks at a loop that is late are enough, from all places to the fewest."""
    pace = Pace(MOST)
    running = 190
    for _ in range(12):
        running = min(running, pace.seen(LATE, running=running, tenants=2))
    assert pace.places == FEWEST


def test_places_come_back_one_by_one() -> None:
    """Control: the additive part, without which a process stays slow for good."""
    pace = Pace(MOST)
    for _ in range(20):
        pace.seen(LATE, running=MOST, tenants=2)
    seen = [pace.seen(0, running=1, tenants=2) for _ in range(MOST)]
    assert seen[:3] == [FEWEST + 1, FEWEST + 2, FEWEST + 3]
    assert seen[-1] == MOST
    assert pace.is_full


def test_a_tenant_alone_keeps_its_places() -> None:
    """Nobody else waits behind its calls, and many at once are cheaper than few."""
    pace = Pace(MOST)
    assert pace.seen(100 * LATE, running=MOST, tenants=1) == MOST


@given(
    most=st.integers(1, 300),
    looks=st.lists(st.tuples(st.integers(0, 10 * LATE), st.integers(0, 300), st.integers(0, 5))),
)
def test_places_stay_within_their_bounds(most: int, looks: list[tuple[int, int, int]]) -> None:
    """Whatever is seen, there is a place, and never more than the most."""
    pace = Pace(most)
    for late_us, running, tenants in looks:
        assert min(FEWEST, most) <= pace.seen(late_us, running=running, tenants=tenants) <= most
