"""A tenant that is suspended or gets another plan between a decision and its effect: it is decided again (as in threat 30)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cluster.admission.registrar import Registrar
from cluster.agents.gang_request import parse_gang
from cluster.coordination.coordination import Op
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.errors import AdmissionDeniedError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role
from tests.governors import assert_whole, begin, facts, principal, request

ACME, A = TenantId("acme"), AgentId("a")
OPERATOR = principal(scopes=ROLE_SCOPES[Role.OPERATOR])
ADMIN = Principal(ACME, ProjectId("default"), "key:admin", ROLE_SCOPES[Role.ADMIN])
# A capability of the plan `standard` alone.
MARKET = "market_analysis"
GANG = {
    "gang_id": "crew",
    "agents": [
        {"agent_id": a, "capabilities": [MARKET], "security_policy": {"resource_limits": {"cpu": "100m", "memory": "64Mi"}}}
        for a in ("b", "c")
    ],
}
WAYS: dict[str, Callable[[Registrar], object]] = {
    "registers": lambda governor: governor.register(ADMIN, request("b", MARKET)),
    "changes": lambda governor: governor.change(ADMIN, request("a", MARKET, "conversation")),
    "registers a gang": lambda governor: governor.register_gang(ADMIN, parse_gang(json.dumps(GANG).encode())),
    "wakes": lambda governor: governor.begin_start(ACME, A),
}


class Store(SqliteCoordination):
    """Does something once, when all of a transaction that makes, changes or wakes an agent was read and nothing is written."""

    act: Callable[[], object] | None = None

    def transact(self, ops: Sequence[Op]) -> None:
        if self.act is not None and any("/agents/" in op.path for op in ops):
            act, self.act = self.act, None
            act()
        super().transact(ops)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "coordination.sqlite")


@pytest.fixture
def governor(tmp_path: Path, store: Store) -> Iterator[Registrar]:
    """A governor with a tenant that was made, and one agent of it."""
    opened = begin(tmp_path, store=store)
    opened.tenancy.answer(OPERATOR, "tenants.make", {}, b'{"tenant_id": "acme", "plan": "standard"}', "r1")
    opened.register(ADMIN, request("a", MARKET))
    yield opened
    opened.close()


def becomes(governor: Registrar, **values: str) -> None:
    governor.tenancy.answer(OPERATOR, "tenants.change", {"tenant_id": "acme"}, json.dumps(values).encode(), "r2")


CHANGES = {"tenant_active": {"state": "suspended"}, "capability_allowed": {"plan": "trial"}}


@pytest.mark.parametrize("check", CHANGES)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_decided_of_another_standing_does_not_happen(
    tmp_path: Path, governor: Registrar, store: Store, way: str, check: str
) -> None:
    """Control: Registry.decided_of. The first decision is void, and the one of the tenant as it stands by then refuses."""
    before = governor.get(ACME, A)
    store.act = lambda: becomes(governor, **CHANGES[check])
    with pytest.raises(AdmissionDeniedError) as refused:
        WAYS[way](governor)
    assert store.act is None
    assert check in {e.field.rpartition(".")[2] for e in refused.value.errors}
    assert governor.list(ACME, "", 10) == [before]
    assert "tenant_changed" in {e.reason for e in facts(tmp_path) if e.outcome.value == "void"}
    if way != "wakes":
        becomes(governor, plan="standard")
        assert assert_whole(tmp_path, governor, ACME) == ["a"]


def test_what_the_new_plan_allows_too_is_held_to_its_bounds(tmp_path: Path, governor: Registrar, store: Store) -> None:
    """Decided once more, and then done."""
    governor.remove(ACME, A, ADMIN)
    store.act = lambda: becomes(governor, plan="trial")
    assert governor.register(ADMIN, request("b", "conversation")).created
    assert governor.quota(ACME)["agents"] == {"used": 1, "limit": 5}
    said = [(e.outcome.value, e.reason) for e in facts(tmp_path) if e.action.startswith("admission:")][-4:]
    assert said == [("allowed", None), ("void", "tenant_changed"), ("allowed", None), ("done", None)]
