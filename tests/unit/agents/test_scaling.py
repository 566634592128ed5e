"""How many replicas there are to be: bounded, slow to change, and the same for the same reports."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.agents.registration import parse_registration
from cluster.agents.scaling import DOWN_DELAY_S, LONGEST_DOWN_DELAY_S, UP_DELAY_S, ReplicaLoad, Trend, desired_replicas
from cluster.agents.spec import AgentSpec, Resources, SpecDefaults

BASE = parse_registration({"agent_id": "a", "capabilities": ["c"]}).to_spec(SpecDefaults("t", "m", Resources(1, 1), "low"))


def a_spec(least: int = 0, most: int = 4, target: int = 8) -> AgentSpec:
    return replace(BASE, min_replicas=least, max_replicas=most, target_queue=target)


specs = st.integers(1, 8).flatmap(
    lambda most: st.builds(a_spec, least=st.integers(0, most), most=st.just(most), target=st.integers(1, 16))
)
loads = st.lists(st.builds(ReplicaLoad, calls=st.integers(0, 200), p95_s=st.floats(0, 1e6)), max_size=8)


def run(spec: AgentSpec, have: int, calls: int, seconds: float, *, step_s: float = 0.25, p95_s: float = 0.0) -> list[int]:
    """Return the number of replicas at each step of a steady load that is spread over them, each wish come true at once."""
    trend, seen = Trend(), [have]
    for n in range(int(seconds / step_s) + 1):
        spread = [ReplicaLoad(calls if i == 0 else 0, p95_s) for i in range(have)]
        have, trend = desired_replicas(spread, spec, trend, n * step_s)
        seen.append(have)
    return seen


@given(specs, st.lists(st.tuples(loads, st.floats(0, 10)), min_size=1, max_size=20))
def test_the_bounds_hold_whatever_is_said(spec: AgentSpec, reports: list[tuple[list[ReplicaLoad], float]]) -> None:
    """Never more than the most, never fewer than the least, and the last one is never taken away."""
    trend, now = Trend(), 0.0
    for said, later in reports:
        now += later
        wanted, trend = desired_replicas(said[: spec.max_replicas], spec, trend, now)
        assert max(spec.min_replicas, min(len(said), 1)) <= wanted <= spec.max_replicas


@given(specs, loads.filter(bool), st.floats(0, 1e6))
def test_a_first_look_changes_nothing(spec: AgentSpec, said: list[ReplicaLoad], now: float) -> None:
    """One report is no reason to add or to take away, only to fill up what is always to be there."""
    said = said[: spec.max_replicas]
    wanted, _ = desired_replicas(said, spec, Trend(), now)
    assert wanted == len(said) or len(said) < spec.min_replicas <= wanted


@given(specs, st.integers(1, 8), st.integers(0, 200))
def test_a_steady_load_comes_to_rest(spec: AgentSpec, have: int, calls: int) -> None:
    """However many there were, after the delays there are as many as the load takes, and it stays so."""
    seen = run(spec, min(have, spec.max_replicas), calls, 4 * DOWN_DELAY_S)
    at_rest = min(max(-(-calls // spec.target_queue), spec.min_replicas, 1), spec.max_replicas)
    assert set(seen[-20:]) == {at_rest}


@given(specs, st.integers(0, 100), st.integers(0, 100))
def test_more_calls_never_want_fewer_replicas(spec: AgentSpec, calls: int, more: int) -> None:
    """The number grows with the load."""
    assert run(spec, 1, calls, 3 * DOWN_DELAY_S)[-1] <= run(spec, 1, calls + more, 3 * DOWN_DELAY_S)[-1]


def test_a_crowd_adds_replicas_only_when_it_lasts() -> None:
    """Not before the delay, and then as many as it takes at once."""
    seen = run(a_spec(most=4), 1, 30, UP_DELAY_S + 1)
    steps = int(UP_DELAY_S / 0.25)
    assert seen[: steps + 1] == [1] * (steps + 1)
    assert seen[steps + 1 :] == [4] * len(seen[steps + 1 :])


def test_a_lull_takes_replicas_only_when_it_lasts() -> None:
    """A crowd that comes back in between starts the delay anew, and the most that was wanted meanwhile stays."""
    spec, trend = a_spec(most=4), Trend()
    idle, half = [ReplicaLoad()] * 4, [ReplicaLoad(5)] * 4
    for now, said, wanted in (
        (0.0, idle, 4),
        (DOWN_DELAY_S - 0.25, idle, 4),
        (DOWN_DELAY_S, half, 3),
        (DOWN_DELAY_S + 0.25, [ReplicaLoad(8)] * 4, 4),
        (DOWN_DELAY_S + 0.5, idle, 4),
        (2 * DOWN_DELAY_S + 0.25, idle, 4),
        (2 * DOWN_DELAY_S + 0.5, idle, 1),
    ):
        got, trend = desired_replicas(said, spec, trend, now)
        assert (now, got) == (now, wanted)


def test_the_most_that_was_wanted_during_a_lull_stays() -> None:
    """A wave within the delay is taken for what comes again."""
    spec, trend, now = a_spec(most=4), Trend(), 0.0
    for calls in (0, 5, 0):
        got, trend = desired_replicas([ReplicaLoad(calls)] * 4, spec, trend, now)
        now += DOWN_DELAY_S / 2
    assert got == 3


def test_slow_calls_make_it_wait_longer_but_not_for_ever() -> None:
    """Twice what its slow calls take, up to a bound."""
    assert set(run(a_spec(), 2, 0, 19.5, p95_s=10.0)) == {2}
    assert run(a_spec(), 2, 0, 21, p95_s=10.0)[-1] == 1
    assert run(a_spec(), 2, 0, LONGEST_DOWN_DELAY_S + 1, step_s=1, p95_s=1e6)[-1] == 1


def test_what_is_always_to_be_there_is_made_at_once() -> None:
    """A replica that was lost is wanted back without any delay; a passive agent wants nothing by itself."""
    assert desired_replicas([], a_spec(least=2), Trend(), 0)[0] == 2
    assert desired_replicas([ReplicaLoad()], a_spec(least=2), Trend(), 0)[0] == 2
    assert desired_replicas([], a_spec(), Trend(), 0)[0] == 0
