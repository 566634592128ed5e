"""What governance knows of the nodes, and what it tells operators of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.nodes import KnownNodes, to_public
from cluster.agents.placement import Node
from cluster.agents.registration import parse_registration
from cluster.agents.spec import AgentSpec, Resources, SpecDefaults

HEAD = Node("head", "id-0", "127.0.0.1", alive=True, head=True, total=Resources(2_500, (8 << 30) + 5))
OTHER = Node("w1", "id-1", "127.0.0.1", alive=True, head=False, total=Resources(2_000, 8 << 30), labels={"zone": "a"})


def spec(**node_labels: str) -> AgentSpec:
    body = {"agent_id": "planner", "capabilities": ["conversation"], "node_labels": node_labels}
    return parse_registration(body).to_spec(SpecDefaults("planner", "scripted:ok", Resources(100, 1 << 20), "none"))


@pytest.fixture
def known() -> KnownNodes:
    found = KnownNodes()
    found.learn([HEAD, OTHER])
    return found


def test_an_idle_process_is_taken_over_only_where_the_agent_may_be(known: KnownNodes) -> None:
    """Becoming another agent is no way round its labels; an agent's empty node is the head."""
    assert [known.allow(spec(), name) for name in ("", "head", "w1", "gone")] == [True, True, True, True]
    assert [known.allow(spec(zone="a"), name) for name in ("", "head", "w1", "gone")] == [False, False, True, False]


def test_an_idle_process_on_a_drained_node_is_nobodys(known: KnownNodes) -> None:
    """Nor round a drain."""
    known.cordoned = frozenset({"w1", "head"})
    assert not any(known.allow(spec(), name) for name in ("", "head", "w1"))


def test_nothing_is_refused_before_the_nodes_are_known() -> None:
    """Governance that has just begun does not know less than Ray does, it only has not looked yet."""
    fresh = KnownNodes()
    fresh.require(spec(zone="x"))
    assert fresh.allow(spec(), "")


def test_an_operator_sees_a_node_that_is_gone_as_gone() -> None:
    """Also when it was drained before; memory is shown in whole MiB."""
    assert to_public(HEAD, cordoned=False, agents=2) == {
        "name": "head",
        "state": "ready",
        "head": True,
        "address": "127.0.0.1",
        "agents": 2,
        "cpu": "2500m",
        "memory": "8Gi",
        "labels": {},
    }
    assert to_public(OTHER, cordoned=True, agents=0)["state"] == "drained"
    assert to_public(replace(OTHER, alive=False), cordoned=True, agents=0)["state"] == "gone"


def test_room_on_two_nodes_is_not_room_on_one(known: KnownNodes) -> None:
    """What is free on a node that the agent may not be on, or in parts on several, is no place for it."""
    small, large = Resources(100, 1 << 20), Resources(2_400, 1 << 20)
    free = [("", large), ("w1", Resources(1_900, 1 << 20))]
    assert known.have_place(spec(), free)
    assert not known.have_place(spec(), [*free, ("", small), ("w1", small)])
    assert not known.have_place(spec(zone="a"), [("w1", Resources(1_950, 1 << 20))])
    assert known.have_place(spec(zone="a"), [("head", large), ("", large)])


def test_with_one_node_all_that_is_free_is_there(known: KnownNodes) -> None:
    """Then the account over everything is the better one."""
    known.learn([HEAD, replace(OTHER, alive=False)])
    assert known.have_place(spec(), [("", Resources(9_000, 1 << 40))])
