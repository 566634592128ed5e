"""Replicas come and go by what they say of their load, and calls find their way to them. Processes are stand-ins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.agent_process import AgentProcess, Key
from actors.directory import Link, choose
from actors.live_agents import LiveAgents
from actors.replicas import RETRY_S, Replicas
from cluster.agents.registration import parse_registration
from cluster.agents.scaling import DOWN_DELAY_S, UP_DELAY_S, ReplicaLoad
from cluster.agents.spec import Resources, SpecDefaults
from cluster.errors import NotFoundError, UnavailableError
from cluster.telemetry.metrics import Metrics

KEY = ("default", "a")
SPEC = replace(
    parse_registration({"agent_id": "a", "capabilities": ["c"]}).to_spec(SpecDefaults("t", "m", Resources(1, 1), "low")),
    max_replicas=3,
    target_queue=2,
)


class Crowd:
    """Hands that start and end at once, and remember."""

    def __init__(self, folder: Path) -> None:
        self.live = LiveAgents(Metrics(folder, "test"))
        self.retired: list[int] = []
        self.generation = 0
        self.refusal: Exception | None = None
        self.replicas = Replicas(self.live, self, self.work)
        self.tasks: list[Awaitable[None]] = []

    def work(self, work: Awaitable[None]) -> None:
        self.tasks.append(work)

    async def add_replica(self, key: Key) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.generation += 1
        self.live.put(AgentProcess(None, f"p{self.generation}", key, "h", 1, self.generation, SPEC))

    async def retire(self, live: AgentProcess) -> None:
        self.retired.append(live.generation)
        self.live.take(live)

    async def look(self, now: float, *calls: int) -> int:
        """Return how many there are after a look, at which each says that it has so many calls."""
        for process, count in zip(self.live.of(KEY), calls, strict=False):
            process.load = ReplicaLoad(count)
        self.replicas.look(now)
        while self.tasks:
            await self.tasks.pop()
        return len(self.live.of(KEY))


@pytest.fixture
async def crowd(tmp_path: Path) -> Crowd:
    crowd = Crowd(tmp_path)
    await crowd.add_replica(KEY)
    return crowd


async def test_replicas_follow_the_load(crowd: Crowd) -> None:
    """Up to the most after the delay, and down to one when the crowd has gone, the least busy and youngest first."""
    assert await crowd.look(0, 9) == 1
    assert await crowd.look(UP_DELAY_S, 9) == 3
    assert await crowd.look(2, 0, 1, 0) == 3
    assert await crowd.look(2 + DOWN_DELAY_S, 0, 1, 0) == 1
    assert crowd.retired == [3, 1]


async def test_without_room_it_is_tried_again_later(crowd: Crowd) -> None:
    """Not at every look; the replicas that there are go on."""
    crowd.refusal = UnavailableError("no room")
    await crowd.look(0, 9)
    assert await crowd.look(UP_DELAY_S, 9) == 1
    crowd.refusal = None
    crowd.replicas._not_before[KEY] = UP_DELAY_S + RETRY_S
    assert await crowd.look(UP_DELAY_S + 1, 9) == 1
    await crowd.look(UP_DELAY_S + RETRY_S, 9)
    assert await crowd.look(2 * UP_DELAY_S + RETRY_S, 9) == 3


async def test_what_is_always_to_be_there_is_started_and_started_again(crowd: Crowd) -> None:
    """Without any call, after its loss, and not any more once it is removed."""
    crowd.replicas.keep(KEY, replace(SPEC, min_replicas=2))
    assert await crowd.look(0) == 2
    for live in crowd.live.of(KEY):
        crowd.live.take(live)
    assert await crowd.look(1) == 2
    crowd.replicas.forget(KEY)
    for live in crowd.live.of(KEY):
        crowd.live.take(live)
    assert await crowd.look(2) == 0


async def test_an_agent_that_is_gone_is_not_kept(crowd: Crowd) -> None:
    """One that was removed elsewhere is asked for once."""
    crowd.replicas.keep(KEY, replace(SPEC, min_replicas=2))
    crowd.refusal = NotFoundError("gone")
    await crowd.look(0)
    crowd.refusal = None
    assert await crowd.look(1) == 1


def test_only_what_is_more_than_the_least_may_be_taken(crowd: Crowd) -> None:
    """An agent that is always to be there is nobody's room."""
    (process,) = crowd.live.of(KEY)
    assert crowd.live.spare(process)
    process.spec = replace(SPEC, min_replicas=1)
    assert not crowd.live.spare(process)


def links(*generations: int) -> list[Link]:
    client: Any = SimpleNamespace(closed=False, pending=0)
    grant: Any = None
    return [Link(SimpleNamespace(**vars(client)), grant, g, 0) for g in generations]  # type: ignore[arg-type]  # a stand-in


def test_a_conversation_stays_with_its_replica_when_others_come_and_go() -> None:
    """Only those of a replica that goes move, and only to the one that comes; all replicas have some."""
    names = [f"conversation-{n}" for n in range(300)]
    before = {name: choose(links(1, 2, 3), name).generation for name in names}
    assert min(Counter(before.values()).values()) > 50
    without = {name: choose(links(1, 3), name).generation for name in names}
    assert {name for name in names if before[name] != without[name]} == {name for name in names if before[name] == 2}
    more = {name: choose(links(4, 3, 2, 1), name).generation for name in names}
    assert {more[name] for name in names if before[name] != more[name]} == {4}


def test_other_calls_go_where_the_fewest_are_under_way() -> None:
    """By what this caller has sent."""
    three = links(1, 2, 3)
    for link, pending in zip(three, (2, 0, 1), strict=True):
        link.client.pending = pending  # type: ignore[misc]  # a stand-in
    assert choose(three, None).generation == 2


async def test_the_table_counts_each_process_once(crowd: Crowd) -> None:
    """Who takes a process out is the only one who does."""
    (process,) = crowd.live.of(KEY)
    assert (len(crowd.live), process in crowd.live, list(crowd.live)) == (1, True, [process])
    assert [crowd.live.take(process), crowd.live.take(process)] == [True, False]
    assert (len(crowd.live), crowd.live.of(KEY)) == (0, [])
