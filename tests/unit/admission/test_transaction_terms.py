"""What is part of one admission beside policy and quota: the budget that is reserved, and whether a node could hold the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.admission.accounts import Accounts
from cluster.admission.budget_use import BudgetUse
from cluster.admission.quota_use import QuotaUse
from cluster.admission.registrar import Registrar
from cluster.agents.budget import MAX_BUDGET, Budget
from cluster.agents.placement import Node
from cluster.agents.record import AgentRecord
from cluster.agents.registration import parse_registration
from cluster.agents.spec import AgentSpec, Resources
from cluster.coordination.coordination import Create, Set
from cluster.errors import AdmissionDeniedError, IntegrityError, InvalidRequestError, QuotaExceededError
from cluster.identity.ids import AgentId
from cluster.journal.audit_event import AuditOutcome
from tests.governors import DEFAULT, assert_whole, begin, changed_policies, facts, open_store, principal, request


@pytest.fixture
def governor(tmp_path: Path) -> Iterator[Registrar]:
    governor = begin(tmp_path)
    yield governor
    governor.close()


def governed(folder: Path, **plan: Any) -> Registrar:
    """A governor of changed entries of the standard plan."""
    return begin(folder, policies=changed_policies(folder, "plans.yaml", {f"standard.{k}": v for k, v in plan.items()}))


def checks(error: AdmissionDeniedError | QuotaExceededError) -> dict[str, str]:
    return {e.field: e.message for e in error.errors}


def test_a_budget_is_reserved_with_the_row_and_returns_with_it(governor: Registrar, tmp_path: Path) -> None:
    """What a registration declares is reserved under its decision, beside the plan's default for the other unit."""
    record = governor.register(principal(), request("a", budget={"tokens": 5_000})).record
    assert record.spec.budget == Budget(5_000, 10_000_000)
    assert governor.reservations(DEFAULT) == [(record.decision_id, "a", record.spec.budget)]
    assert {unit: use["reserved"] for unit, use in governor.budget(DEFAULT).items()} == {"tokens": 5_000, "micro_usd": 10_000_000}
    assert record.to_public()["budget"] == {"tokens": 5_000, "micro_usd": 10_000_000}
    (decided, _) = facts(tmp_path)
    assert decided.detail["reserves"] == {
        "cpu_milli": 100,
        "memory_bytes": 64 << 20,
        "agents": 1,
        "tokens": 5_000,
        "micro_usd": 10_000_000,
    }
    assert AgentRecord.from_bytes(record.to_bytes()) == record
    governor.remove(DEFAULT, AgentId("a"), principal())
    assert governor.reservations(DEFAULT) == []
    assert all(use["reserved"] == 0 for use in governor.budget(DEFAULT).values())
    assert assert_whole(tmp_path, governor) == []


def test_what_does_not_fit_into_the_budget_is_refused_to_the_last_unit(tmp_path: Path) -> None:
    """Reserved and spent together never pass the plan's bound; the refusal says what is used, asked for and left."""
    governor = governed(tmp_path, budget={"tokens": 1_000})
    store = open_store(tmp_path)
    store.transact([Create("/tenants/default/budget", BudgetUse(settled=Budget(400, 0)).to_bytes())])
    governor.register(principal(), request("a", budget={"tokens": 500}))
    with pytest.raises(QuotaExceededError, match="budget of tenant default") as refused:
        governor.register(principal(), request("b", budget={"tokens": 101}))
    assert checks(refused.value) == {"budget.tokens": "900 of 1000 is reserved or spent, 101 asked for, 100 left"}
    governor.register(principal(), request("b", budget={"tokens": 100}))
    assert governor.budget(DEFAULT)["tokens"] == {"reserved": 600, "settled": 400, "limit": 1_000}
    # What was spent does not come back with the agents.
    for agent in ("a", "b"):
        governor.remove(DEFAULT, AgentId(agent), principal())
    assert governor.budget(DEFAULT)["tokens"] == {"reserved": 0, "settled": 400, "limit": 1_000}
    assert assert_whole(tmp_path, governor) == []
    store.close()
    governor.close()


def test_a_full_quota_and_a_full_budget_are_said_together(tmp_path: Path) -> None:
    """One refusal names every bound that would be passed, and nothing of the registration is left."""
    governor = governed(tmp_path, budget={"tokens": 10}, quota={"cpu": "150m", "memory": "1Gi", "agents": 1})
    governor.register(principal(), request("a", budget={"tokens": 10}))
    with pytest.raises(QuotaExceededError) as refused:
        governor.register(principal(), request("b", budget={"tokens": 10}))
    assert checks(refused.value).keys() == {"quota.agents", "quota.cpu", "budget.tokens"}
    assert assert_whole(tmp_path, governor) == ["a"]
    governor.close()


def test_what_a_plan_bounds_must_be_declared(tmp_path: Path) -> None:
    """Without a default, CPU, memory and budget that a plan bounds must be said; each is a named check of the decision."""
    defaults = {"agent_type": "assistant", "model": "local:smollm2", "data_access_level": "public"}
    governor = governed(tmp_path, budget={"micro_usd": 10}, defaults=defaults)
    bare = parse_registration({"agent_id": "a", "capabilities": ["conversation"]})
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register(principal(), bare)
    said = checks(refused.value)
    assert "cpu and memory" in said["resources_declared"]
    assert "micro_usd" in said["budget_declared"]
    (fact,) = facts(tmp_path)
    assert fact.outcome is AuditOutcome.DENIED
    assert fact.detail["unmet"].keys() == {"resources_declared", "budget_declared"}
    governor.register(principal(), request("a", budget={"micro_usd": 10}))
    governor.close()


def test_a_unit_that_no_plan_bounds_is_counted_all_the_same(tmp_path: Path) -> None:
    """A registration may declare a budget of its own where the plan has none: it is reserved, and bounds nobody else."""
    governor = governed(tmp_path, budget={})
    governor.register(principal(), request("a", budget={"tokens": MAX_BUDGET}))
    governor.register(principal(), request("b", budget={"tokens": MAX_BUDGET}))
    assert governor.budget(DEFAULT)["tokens"] == {"reserved": 2 * MAX_BUDGET, "settled": 0, "limit": None}
    assert assert_whole(tmp_path, governor) == ["a", "b"]
    governor.close()


@pytest.mark.parametrize("amount", [0, -1, 1.5, "7", True, None, MAX_BUDGET + 1])
def test_an_odd_budget_is_refused(amount: Any) -> None:
    """A budget is a whole number above nothing, and never text, a fraction or a truth value."""
    with pytest.raises(InvalidRequestError) as refused:
        request("a", budget={"tokens": amount})
    assert [e.field for e in refused.value.errors] == ["budget.tokens"]


def test_a_spec_without_a_budget_keeps_its_digest() -> None:
    """What was registered before there were budgets is still the same spec, and reads back."""
    plain = request("a").to_spec(_defaults())
    assert "budget" not in plain.to_json()
    rich = request("a", budget={"tokens": 1}).to_spec(_defaults())
    assert rich.digest != plain.digest
    assert AgentSpec.from_json(rich.to_json()) == rich


def _defaults() -> Any:
    from cluster.agents.spec import SpecDefaults

    return SpecDefaults(agent_type="assistant", model="local:x", resources=Resources(1, 1), data_access_level="public")


@pytest.mark.parametrize(
    ("use", "stored"),
    [(QuotaUse, b"{}"), (QuotaUse, b"x"), (BudgetUse, b"{}"), (BudgetUse, b'{"reserved":{"tokens":-1,"micro_usd":0}}')],
)
def test_a_broken_account_is_said_and_not_taken_for_nothing(use: Any, stored: bytes) -> None:
    """Quota and budget that can't be read stop an admission; they are never read as empty."""
    with pytest.raises(IntegrityError):
        use.from_bytes(stored)


def test_a_broken_reservation_is_said(governor: Registrar, tmp_path: Path) -> None:
    """A reservation that can't be read is named."""
    record = governor.register(principal(), request("a")).record
    store = open_store(tmp_path)
    store.transact([Set(f"/tenants/default/reservations/{record.decision_id}", orjson.dumps({"agent_id": "a"}))])
    with pytest.raises(IntegrityError, match=record.decision_id):
        list(Accounts(store).reservations(DEFAULT))
    store.close()


def node(name: str, cpu: int, *, alive: bool = True, **labels: str) -> Node:
    return Node(name, name, "127.0.0.1", alive, name == "head", Resources(cpu, 1 << 40), labels)


@pytest.mark.parametrize(
    ("cpu", "labels", "words"),
    [("100m", {"zone": "x"}, "zone=x"), ("3", {}, "3000m CPU"), ("2", {"zone": "a"}, "2000m CPU")],
)
def test_an_agent_that_no_known_node_could_hold_is_not_admitted(
    governor: Registrar, tmp_path: Path, cpu: str, labels: dict[str, str], words: str
) -> None:
    """The decision says why, and which nodes were known."""
    governor.know_nodes(lambda: [node("head", 2_000), node("w", 1_000, zone="a")])
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register(principal(), request("a", cpu=cpu, node_labels=labels))
    assert checks(refused.value).keys() == {"placement_feasible"}
    assert words in checks(refused.value)["placement_feasible"]
    (fact,) = facts(tmp_path)
    assert (fact.outcome, fact.detail["nodes"]) == (AuditOutcome.DENIED, ["head", "w"])
    assert assert_whole(tmp_path, governor) == []


def test_a_node_that_is_away_or_no_node_at_all_keeps_nobody_from_being_registered(governor: Registrar) -> None:
    """To be registered is not to run: a known node counts also while it is gone, and before the first look none is missed."""
    governor.register(principal(), request("early", cpu="16", node_labels={"zone": "nowhere"}))
    governor.know_nodes(lambda: [node("head", 100), node("w", 1_000, alive=False, zone="a")])
    governor.register(principal(), request("a", cpu="1", node_labels={"zone": "a"}))
