"""Gangs: several agents that are registered and removed together, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.registrar import Registrar
from cluster.agents.gang import MAX_GANG, Gang, Strategy, gang_infeasible
from cluster.agents.gang_request import GangRequest, parse_gang
from cluster.agents.lifecycle import AgentState
from cluster.agents.placement import Node
from cluster.agents.spec import Resources
from cluster.errors import AdmissionDeniedError, ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from cluster.identity.ids import AgentId
from cluster.journal.audit_event import AuditAction, AuditOutcome
from tests.governors import DEFAULT, assert_whole, begin, changed_policies, facts, principal, request


@pytest.fixture
def governor(tmp_path: Path) -> Iterator[Registrar]:
    """A governor whose plan has room for 1 CPU and 100 processes."""
    quota = {"cpu": "1", "memory": "64Gi", "agents": 100}
    governor = begin(tmp_path, policies=changed_policies(tmp_path, "plans.yaml", {"standard.quota": quota}))
    yield governor
    governor.close()


def gang(*agents: str, gang_id: str = "crew", strategy: str = "pack", cpu: str = "100m", **more: Any) -> GangRequest:
    members = [request(a, cpu=cpu, **more).model_dump(mode="json", exclude_unset=True) for a in agents]
    for member in members:
        member["security_policy"]["resource_limits"]["cpu"] = cpu
    return parse_gang({"gang_id": gang_id, "agents": members, "strategy": strategy})


def test_a_gang_is_registered_as_one(governor: Registrar, tmp_path: Path) -> None:
    """Every member has a row, a decision and a reservation of its own; they come in one transaction."""
    records, created = governor.register_gang(principal(), gang("a", "b", "c"), request_id="r")
    assert created
    assert [str(r.spec.agent_id) for r in records] == ["a", "b", "c"]
    assert {r.gang for r in records} == {"crew"}
    assert len({r.decision_id for r in records}) == 3
    found = governor.gang(DEFAULT, "crew")
    assert Gang.from_bytes(found.to_bytes()) == found
    assert governor.gangs() == [found]
    assert (found.agents, found.strategy) == (("a", "b", "c"), Strategy.PACK)
    assert governor.quota(DEFAULT)["cpu_milli"]["used"] == 300
    assert assert_whole(tmp_path, governor) == ["a", "b", "c"]
    # The same again is answered the same, and counts nothing twice.
    assert governor.register_gang(principal(), gang("a", "b", "c")) == (records, False)
    with pytest.raises(ConflictError):
        governor.register_gang(principal(), gang("a", "b", "d"))
    assert assert_whole(tmp_path, governor) == ["a", "b", "c"]


def test_a_gang_that_does_not_fit_together_is_not_registered_in_part(governor: Registrar, tmp_path: Path) -> None:
    """Quota counts all members at once: of four of which three would fit, none is registered, and all decisions are void."""
    with pytest.raises(QuotaExceededError) as refused:
        governor.register_gang(principal(), gang("a", "b", "c", "d", cpu="300m"))
    assert "1200m" in refused.value.errors[0].message or "1200" in str(refused.value.errors[0])
    assert assert_whole(tmp_path, governor) == []
    outcomes = [e.outcome for e in facts(tmp_path) if e.action == AuditAction.ADMISSION_OUTCOME]
    assert outcomes == [AuditOutcome.VOID] * 4
    assert governor.gangs() == []


def test_a_member_that_may_not_be_keeps_all_others_from_being(governor: Registrar, tmp_path: Path) -> None:
    """The refusal names each failed check of each member by its place; the decisions that allowed are void."""
    asked = gang("a", "b")
    bad = request("c", "payment_execution")
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register_gang(principal(), asked.model_copy(update={"agents": [*asked.agents, bad]}))
    assert {e.field for e in refused.value.errors} == {"agents.2.capability_allowed", "agents.2.obligation_human_approval"}
    assert assert_whole(tmp_path, governor) == []


def test_a_member_is_one_process_and_named_once(governor: Registrar, tmp_path: Path) -> None:
    """The same id twice, and a member of several replicas, are refused beside all else that is wrong."""
    asked = gang("a", "a", max_replicas=2)
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register_gang(principal(), asked)
    assert {e.field for e in refused.value.errors} == {
        "agents.0.gang_member_single",
        "agents.1.gang_member_single",
        "agents.1.gang_members_distinct",
    }
    assert assert_whole(tmp_path, governor) == []


def test_a_member_that_exists_keeps_all_others_from_being(governor: Registrar, tmp_path: Path) -> None:
    """Also when what exists is the same agent: a gang is never made of agents that others may have."""
    governor.register(principal(), request("b"))
    with pytest.raises(ConflictError, match="b is registered already"):
        governor.register_gang(principal(), gang("a", "b"))
    assert assert_whole(tmp_path, governor) == ["b"]


def test_the_largest_gang_is_registered_started_and_removed(tmp_path: Path) -> None:
    """Its rows and all that goes with them fit into one transaction, also at its removal while it lives."""
    governor = begin(tmp_path)
    names = [f"m{n:02}" for n in range(MAX_GANG)]
    for _ in range(2):  # the second time above the generations of the first
        governor.register_gang(principal(), gang(*names, cpu="10m", min_replicas=1))
        generations = {a: governor.begin_start(DEFAULT, AgentId(a))[1] for a in names}
        governor.remove_gang(DEFAULT, "crew", principal())
        assert {r.state for r in governor.live_rows()} == {AgentState.REVOKED.value}
        for agent, generation in generations.items():
            governor.mark_passive(DEFAULT, AgentId(agent), generation, "drained")
        assert assert_whole(tmp_path, governor) == []
        governor.register_gang(principal(), gang(*names, cpu="10m", min_replicas=1))
        governor.remove_gang(DEFAULT, "crew", principal())
        assert governor.kept() == []
    governor.close()


def test_members_go_together(governor: Registrar, tmp_path: Path) -> None:
    """One member can be neither removed nor changed alone; the gang's removal gives all of it back."""
    governor.register_gang(principal(), gang("a", "b"))
    with pytest.raises(ConflictError, match="gang crew"):
        governor.remove(DEFAULT, AgentId("a"), principal())
    with pytest.raises(ConflictError, match="gang crew"):
        governor.change(principal(), request("a", cpu="200m"))
    governor.remove_gang(DEFAULT, "crew", principal())
    assert assert_whole(tmp_path, governor) == []
    assert governor.gangs() == []
    with pytest.raises(NotFoundError):
        governor.remove_gang(DEFAULT, "crew", principal())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"agents": []}, "agents"),
        ({"strategy": "nearby"}, "strategy"),
        ({"strategy": None}, "strategy"),
        ({"gang_id": "../x"}, "gang_id"),
        ({"more": 1}, "more"),
        ({"agents": [{"agent_id": f"a{n}", "capabilities": ["conversation"]} for n in range(MAX_GANG + 1)]}, "agents"),
    ],
)
def test_an_odd_gang_is_refused(change: dict[str, Any], field: str) -> None:
    """Too few, too many, an unknown strategy or field: named by the field."""
    good = {"gang_id": "crew", "agents": [{"agent_id": f"a{n}", "capabilities": ["conversation"]} for n in range(2)]}
    assert parse_gang(good).strategy is Strategy.PACK
    with pytest.raises(InvalidRequestError) as refused:
        parse_gang(good | change)
    assert field in {e.field for e in refused.value.errors}


def nodes(*sizes: int) -> list[Node]:
    return [Node(f"n{i}", f"n{i}", "127.0.0.1", True, i == 0, Resources(s, 1 << 40), {"n": str(i)}) for i, s in enumerate(sizes)]


@pytest.mark.parametrize(
    ("strategy", "sizes", "feasible"),
    [
        ("pack", (200, 200), True),
        ("strict_pack", (299, 200), False),
        ("strict_pack", (200, 300), True),
        ("strict_spread", (300, 300), False),
        ("strict_spread", (100, 100, 100), True),
        ("strict_spread", (100, 99, 100, 50), False),
    ],
)
def test_a_gang_that_the_nodes_could_never_hold_is_not_admitted(
    governor: Registrar, strategy: str, sizes: Sequence[int], feasible: bool
) -> None:
    """Three members of 100m: one node for all of them, or a node for each, if that is asked for."""
    governor.know_nodes(lambda: nodes(*sizes))
    asked = gang("a", "b", "c", strategy=strategy)
    if feasible:
        governor.register_gang(principal(), asked)
    else:
        with pytest.raises(AdmissionDeniedError) as refused:
            governor.register_gang(principal(), asked)
        assert {e.field for e in refused.value.errors} == {f"agents.{n}.gang_feasible" for n in range(3)}


def test_a_node_each_is_found_also_when_the_first_choice_is_wrong() -> None:
    """Who may be on one node only gets it, though another came first."""
    specs = [gang(a, b).agents[0] for a, b in (("a", "x"), ("b", "y"))]
    from cluster.agents.spec import SpecDefaults

    defaults = SpecDefaults(agent_type="assistant", model="local:x", resources=Resources(1, 1), data_access_level="public")
    anywhere = specs[0].to_spec(defaults)
    bound = request("b", node_labels={"n": "0"}).to_spec(defaults)
    assert gang_infeasible([anywhere, bound], Strategy.STRICT_SPREAD, nodes(1_000, 1_000)) == ""
    assert gang_infeasible([bound, bound], Strategy.STRICT_SPREAD, nodes(1_000, 1_000)) != ""
