"""How gangs start and end, and what a change does to processes. The ledger is real; Ray's parts are stand-ins that can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from actors import agent_process, gangs
from actors.agent_processes import AgentProcesses
from actors.room import Account
from actors.start_order import StartOrder
from cluster import wiring
from cluster.admission.registrar import Registrar
from cluster.agents.gang import Strategy
from cluster.agents.gang_request import parse_gang
from cluster.agents.registration import parse_registration
from cluster.agents.spec import Resources
from cluster.errors import UnavailableError
from cluster.identity.ids import AgentId
from cluster.settings import Settings
from tests.gates import open_gate
from tests.unit.actors.test_agent_processes import OWNER, TENANT, Handle, Ray, answers, processes, state

A, B, C = (AgentId(x) for x in "abc")
CREW = (A, B, C)
SIZE = Resources(100, 256 << 20)


class RayWithGroups(Ray):
    """Also groups, of which none may be to be had, and starts, of which some may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.groups: dict[str, Strategy] = {}
        self.full = False
        self.asked = 0
        self.broken: set[str] = set()
        # Which agent was started at which place, in order.
        self.started: list[tuple[str, object]] = []
        monkeypatch.setattr(gangs, "group_names", lambda prefix: {g for g in self.groups if g.startswith(prefix)})
        monkeypatch.setattr(gangs, "hold_group", self.hold)
        monkeypatch.setattr(gangs, "release_group", lambda name: self.groups.pop(name, None))
        monkeypatch.setattr(agent_process, "create", self.create)

    def hold(
        self, name: str, members: Sequence[Resources], selectors: Sequence[Mapping[str, str]], strategy: Strategy
    ) -> list[Any]:
        self.asked += 1
        if self.full:
            return []
        self.groups[name] = strategy
        return [f"place {i}" for i in range(len(members))]

    def create(self, cls: type, order: bytes, *, name: str, place: object = None, **more: Any) -> Handle:
        told = StartOrder.from_bytes(order)
        agent = told.record.spec.agent_id
        self.started.append((str(agent), place))
        handle = self.actors[name] = Handle(answers(agent, told.generation))

        async def start(agent_key: bytes) -> bytes:
            if agent in self.broken:
                raise RayError("it did not come up")
            return json.dumps({"host": "127.0.0.1", "port": 1, "node": ""}).encode()

        handle.start = SimpleNamespace(remote=start)  # type: ignore[attr-defined]  # only fresh ones are started
        return handle


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> RayWithGroups:
    return RayWithGroups(monkeypatch)


@pytest.fixture
async def registrar(tmp_path: Any, ray: RayWithGroups) -> AsyncIterator[Registrar]:
    """The real ledger, with a gang of three."""
    settings = Settings.load(home=tmp_path)
    settings.secret_dir.mkdir(parents=True)
    (settings.secret_dir / "master-key").write_text("ab" * 32)
    open_gate(settings.journal_dir)
    wiring.sign_policies(settings)
    opened = wiring.build_registrar(settings)
    opened.recover()
    members = [{"agent_id": a, "capabilities": ["conversation"]} for a in CREW]
    opened.register_gang(OWNER, parse_gang({"gang_id": "crew", "agents": members, "strategy": "spread"}))
    yield opened
    opened.close()


@pytest.fixture
async def found(registrar: Registrar, tmp_path: Any) -> AgentProcesses:
    """Processes on a node that has room for four of them."""
    found = await processes(Settings.load(home=tmp_path), registrar)
    four = SIZE.times(4)
    found._room.learn(Account(four, four))
    return found


def free(found: AgentProcesses, count: int) -> bool:
    """Whether exactly so many more fit."""
    return found._room.fits(SIZE.times(count)) and not found._room.fits(SIZE.times(count + 1))


def states(registrar: Registrar) -> set[str]:
    return {state(registrar, agent) for agent in CREW}


async def wake(found: AgentProcesses, agent: AgentId) -> None:
    await found.resolve(TENANT, agent, "key:test", 0)


async def test_who_wakes_one_member_wakes_all_each_at_its_place(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups
) -> None:
    """However many ask at once, for whichever member: one group, one start of each."""
    await asyncio.gather(wake(found, B), wake(found, A), wake(found, B))
    assert sorted(ray.started) == [("a", "place 0"), ("b", "place 1"), ("c", "place 2")]
    assert list(ray.groups.items()) == [(registrar.gang(TENANT, "crew").group, Strategy.SPREAD)]
    assert (ray.asked, free(found, 1)) == (1, True)
    # They lend their processes to nobody, and keep them while nobody calls.
    assert not any(found.live.spare(live) for live in found.live)


async def test_a_gang_without_room_for_all_starts_none(found: AgentProcesses, registrar: Registrar, ray: RayWithGroups) -> None:
    """Neither by our own account, nor when Ray finds no place; nothing of it is held afterwards."""
    ray.full = True
    with pytest.raises(UnavailableError, match="gang crew"):
        await wake(found, A)
    assert free(found, 4)
    ray.full = False
    found._room.take(SIZE.times(2))
    with pytest.raises(UnavailableError, match="no room"):
        await wake(found, A)
    found._room.give(SIZE.times(2))
    assert (ray.started, ray.groups, states(registrar)) == ([], {}, {"passive"})
    assert free(found, 4)


async def test_a_member_that_does_not_come_up_takes_all_others_down(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups
) -> None:
    """Those that had started are ended, the place is given back, and the next call starts all of them again."""
    ray.broken = {"c"}
    with pytest.raises(UnavailableError):
        await wake(found, A)
    assert (list(found.live), ray.groups, states(registrar)) == ([], {}, {"passive"})
    assert free(found, 4)
    ray.broken = set()
    await wake(found, C)
    assert len(found.live) == 3


async def test_a_lost_member_comes_back_to_its_place_or_leaves_the_others_alone(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups
) -> None:
    """The group stays as long as the gang does, and those at work go on when one can't be started again."""
    await wake(found, A)
    (lost,) = found.live.of((str(TENANT), "b"))
    await found._lives.lost(lost)
    assert free(found, 1)
    ray.broken = {"b"}
    with pytest.raises(UnavailableError):
        await wake(found, B)
    assert sorted(live.key[1] for live in found.live) == ["a", "c"]
    assert len(ray.groups) == 1
    ray.broken = set()
    await wake(found, B)
    assert ray.started[-1] == ("b", "place 1")
    assert free(found, 1)


async def test_a_removed_gang_gives_its_place_back(found: AgentProcesses, registrar: Registrar, ray: RayWithGroups) -> None:
    """When its processes have ended, and not before its rows say that none starts again."""
    await wake(found, A)
    await found.remove_gang(registrar.remove_gang(TENANT, "crew", OWNER))
    assert (list(found.live), ray.groups, registrar.live_rows()) == ([], {}, [])
    assert registrar.quota(TENANT)["agents"]["used"] == 0
    assert free(found, 4)


async def test_a_drained_node_ends_gangs_whole(found: AgentProcesses, registrar: Registrar, ray: RayWithGroups) -> None:
    """A place on a node that takes nothing is let go of with all members, so that they start elsewhere, together."""
    await wake(found, A)
    for live in found.live:
        live.node = "w1" if live.key[1] == "b" else ""
    await found.end_on("w1")
    assert (list(found.live), ray.groups, states(registrar)) == ([], {}, {"passive"})
    assert free(found, 4)


async def test_a_later_governor_keeps_the_places_of_gangs_and_removes_those_of_nobody(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups, tmp_path: Any
) -> None:
    """What a group holds is counted once, by the group; members that run are taken over."""
    await wake(found, A)
    ray.groups["gang:default:of-nobody"] = Strategy.PACK
    later = await processes(Settings.load(home=tmp_path), registrar)
    await later.recover()
    later._room.learn(Account(SIZE.times(4), SIZE.times(4)))
    assert ray.groups.keys() == {registrar.gang(TENANT, "crew").group}
    assert (len(later.live), later.live.of((str(TENANT), "a"))[0].gang) == (3, "crew")
    assert free(later, 1)


async def single(found: AgentProcesses, registrar: Registrar) -> None:
    registrar.register(OWNER, parse_registration({"agent_id": "solo", "capabilities": ["conversation"]}))
    await wake(found, AgentId("solo"))


def changed(registrar: Registrar) -> Any:
    policy = {"resource_limits": {"cpu": "50m", "memory": "128Mi"}}
    body = {"agent_id": "solo", "capabilities": ["conversation"], "security_policy": policy}
    return registrar.change(OWNER, parse_registration(body))[0]


async def test_a_changed_agent_runs_its_new_spec_as_a_new_generation(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups
) -> None:
    """The process of the earlier one is drained, its quota comes back, and the next call starts the new one."""
    await single(found, registrar)
    await found.replace(changed(registrar))
    assert [live.key[1] for live in found.live] == []
    assert registrar.quota(TENANT)["cpu_milli"]["used"] == 350
    await wake(found, AgentId("solo"))
    (live,) = found.live
    assert (live.generation, live.spec.resources) == (2, Resources(50, 128 << 20))


async def test_a_governor_that_died_before_it_ended_an_earlier_spec_is_made_good(
    found: AgentProcesses, registrar: Registrar, ray: RayWithGroups, tmp_path: Any
) -> None:
    """Its successor ends the process, which would go on under what is not admitted any more, and gives the quota back."""
    await single(found, registrar)
    changed(registrar)
    later = await processes(Settings.load(home=tmp_path), registrar)
    await later.recover()
    assert len(ray.killed) == 1
    assert list(later.live) == []
    assert registrar.quota(TENANT)["cpu_milli"]["used"] == 350
