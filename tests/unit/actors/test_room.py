"""What is free for agents, between two looks at Ray's account."""

from __future__ import annotations

from actors.room import SETTLED_S, Account, Room
from cluster.agents.spec import Resources

GIB = 1 << 30


def of(cpu_milli: int, gib: int = 1) -> Resources:
    return Resources(cpu_milli, gib * GIB)


def test_agents_fit_until_the_cluster_is_full() -> None:
    """CPU and memory are both counted, and what ends is free again."""
    room = Room()
    room.learn(Account(of(2000, 4), of(2000, 4)))
    room.take(of(1000))
    assert room.fits(of(1000))
    assert not room.fits(of(1001))
    assert not room.fits(of(100, 4))
    room.take(of(1000))
    assert not room.fits(of(1))
    room.give(of(1000))
    assert room.fits(of(1000))


def test_what_others_hold_is_learnt_when_agents_stand_still() -> None:
    """A model that took half of the node counts; Ray's account of agents that just came or went is not believed yet."""
    now = 0.0
    room = Room(clock=lambda: now)
    room.take(of(500))
    room.learn(Account(of(2000, 4), of(500, 2)))
    assert room.fits(of(1500))
    now = SETTLED_S
    room.learn(Account(of(2000, 4), of(500, 2)))
    assert not room.fits(of(501))
    assert room.fits(of(500))


def test_everything_fits_before_the_first_account() -> None:
    """A governor that has just begun leaves it to Ray."""
    assert Room().fits(of(1_000_000))
