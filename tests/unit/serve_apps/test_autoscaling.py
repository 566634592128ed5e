"""How many gateways are wanted: enough for the calls, one more when they are slow, and none taken away that comes back."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.settings import Settings
from serve_apps.autoscaling import ROOM, SLOW_S, LoopWait, config, gateways_wanted

counts = st.integers(0, 8)
targets = st.integers(1, 256)
calls = st.lists(st.floats(0, 1_000), max_size=8)
waits = st.lists(st.floats(0, 10), max_size=8)


@given(counts, st.floats(0, 1_000), calls, waits, targets)
def test_there_are_enough_for_the_calls(have: int, queued: float, held: list[float], waits_s: list[float], target: int) -> None:
    """Whatever else is reported, no gateway is to hold more than its target."""
    assert gateways_wanted(have, queued, held, waits_s, target=target) * target >= sum(held) + queued - 1e-6


@given(counts, st.floats(0, 1_000), calls, waits, targets)
def test_more_calls_never_want_fewer(have: int, more: float, held: list[float], waits_s: list[float], target: int) -> None:
    """The number grows with what waits."""
    fewer = gateways_wanted(have, 0.0, held, waits_s, target=target)
    assert gateways_wanted(have, more, held, waits_s, target=target) >= fewer


@given(counts, calls, targets)
def test_what_is_taken_away_does_not_come_back(have: int, held: list[float], target: int) -> None:
    """For the same calls, spread over those that are left, the answer stays."""
    assume(have)
    wanted = gateways_wanted(have, 0.0, held, [0.0], target=target)
    assume(wanted < have)
    assert gateways_wanted(wanted, 0.0, [sum(held)], [0.0], target=target) == wanted
    assert sum(held) <= wanted * target * ROOM + 1e-6


@pytest.mark.parametrize(
    ("have", "queued", "held", "wait_s", "wanted"),
    [
        (0, 0, [], None, 0),
        (0, 1, [], None, 1),
        (1, 0, [0], 0.0, 0),
        (1, 0, [1], 0.0, 1),
        (1, 0, [9], 0.0, 2),
        (2, 0, [4, 3], 0.0, 2),
        (2, 0, [3, 2], 0.0, 1),
        # Slow ones get company although they hold few calls, and none goes while they are half as slow.
        (1, 0, [1], SLOW_S * 1.1, 2),
        (3, 0, [1, 0, 0], SLOW_S * 0.6, 3),
        (3, 0, [1, 0, 0], SLOW_S * 0.4, 1),
    ],
)
def test_examples(have: int, queued: float, held: list[float], wait_s: float | None, wanted: int) -> None:
    """Eight calls each are the target."""
    assert gateways_wanted(have, queued, held, [] if wait_s is None else [wait_s], target=8) == wanted


def test_serve_gets_a_policy_only_when_there_is_something_to_scale() -> None:
    """A fixed number of gateways costs no controller anything."""
    assert config(Settings.load(gateway_min_replicas=2, gateway_max_replicas=2)) is None


@pytest.mark.parametrize(("cpus", "most"), [(1, 1), (2, 1), (16, 8)])
def test_unless_said_otherwise_there_is_one_for_every_two_cpus(monkeypatch: pytest.MonkeyPatch, cpus: int, most: int) -> None:
    """More would take them from the agents; what agents share by the settings is another matter."""
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert Settings.load(num_cpus=64).most_gateways == most
    assert Settings.load(gateway_max_replicas=4).most_gateways == 4


async def test_a_busy_loop_is_seen() -> None:
    """What blocks the loop makes the wait as long; a loop with nothing to do has almost none."""
    wait = LoopWait()
    assert wait.p95_s() == 0.0
    for _ in range(3):
        await asyncio.sleep(LoopWait.INTERVAL_S / 2)
        time.sleep(0.3)  # noqa: ASYNC251  # to block is what is tested
    assert wait.p95_s() > 0.1
