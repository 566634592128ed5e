"""Tenants that are made at run time: what they may do, who changes them, and what the record says of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.admission import invocation_request
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError
from cluster.admission.standing import StandingEngine
from cluster.errors import (
    AdmissionDeniedError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
    SovereignError,
    StorageError,
)
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role
from cluster.journal.audit_event import AuditOutcome
from tests.governors import DEFAULT, begin, changed_policies, facts, principal, request

ACME = TenantId("acme")
OPERATOR = principal(scopes=ROLE_SCOPES[Role.OPERATOR])
ADMIN = Principal(ACME, ProjectId("default"), "key:admin", ROLE_SCOPES[Role.ADMIN])


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    opened = begin(tmp_path)
    yield opened
    opened.close()
    gc.collect()


def ask(registrar: Registrar, operation: str, body: Any = None, who: Principal = OPERATOR, **named: str) -> Any:
    content = b"" if body is None else json.dumps(body).encode()
    return registrar.tenancy.answer(who, operation, named, content, "r1")


def make(registrar: Registrar, plan: str = "standard") -> None:
    ask(registrar, "tenants.make", {"tenant_id": "acme", "plan": plan})


def failed(refused: pytest.ExceptionInfo[SovereignError]) -> list[str]:
    return [e.field for e in refused.value.errors]


def test_a_made_tenant_registers_by_its_plan(registrar: Registrar) -> None:
    """Policy, defaults and quota are those of the plan that it names, beside what other tenants hold."""
    with pytest.raises(AdmissionDeniedError) as refused:
        registrar.register(ADMIN, request("planner"))
    assert "tenant_active" in failed(refused)
    make(registrar, "trial")
    for number in range(5):
        assert registrar.register(ADMIN, request(f"planner-{number}")).created
    with pytest.raises(QuotaExceededError):
        registrar.register(ADMIN, request("planner-5"))
    with pytest.raises(AdmissionDeniedError) as refused:
        registrar.register(ADMIN, request("other", "market_analysis"))
    assert failed(refused) == ["capability_allowed"]
    assert registrar.quota(ACME)["agents"] == {"used": 5, "limit": 5}
    assert registrar.quota(DEFAULT)["agents"]["used"] == 0


def test_another_plan_holds_from_then_on(registrar: Registrar) -> None:
    """What was registered stays; what comes next is asked of the new plan."""
    make(registrar, "trial")
    registrar.register(ADMIN, request("planner"))
    changed = ask(registrar, "tenants.change", {"plan": "standard"}, tenant_id="acme")
    assert (changed["plan"], changed["state"]) == ("standard", "active")
    assert registrar.register(ADMIN, request("other", "market_analysis")).created
    assert registrar.quota(ACME)["agents"] == {"used": 2, "limit": 1000}


def test_a_suspended_tenant_does_nothing_and_loses_nothing(registrar: Registrar) -> None:
    """No registration, no wake, no call; resumed, its agents are as they were."""
    make(registrar)
    planner = AgentId("planner")
    before = registrar.register(ADMIN, request("planner")).record
    assert ask(registrar, "tenants.change", {"state": "suspended"}, tenant_id="acme")["state"] == "suspended"
    for action in (
        lambda: registrar.register(ADMIN, request("another")),
        lambda: registrar.begin_start(ACME, planner),
        lambda: registrar.invocations.check(ADMIN, planner, ttl_s=60.0),
    ):
        with pytest.raises(AdmissionDeniedError) as refused:
            action()
        assert failed(refused) == ["tenant_active"]
    assert registrar.get(ACME, planner) == before
    ask(registrar, "tenants.change", {"state": "active"}, tenant_id="acme")
    registrar.invocations.check(ADMIN, planner, ttl_s=60.0)
    assert registrar.begin_start(ACME, planner)[1] == 1


def test_what_the_policy_data_declares_wins_and_stays(registrar: Registrar, tmp_path: Path) -> None:
    """It is neither made nor changed at run time; a tenant that is declared later than it was made is as it is declared."""
    for action in (
        lambda: ask(registrar, "tenants.make", {"tenant_id": "trial", "plan": "standard"}),
        lambda: ask(registrar, "tenants.change", {"state": "suspended"}, tenant_id="trial"),
    ):
        with pytest.raises(ConflictError):
            action()
    make(registrar)
    policies = changed_policies(tmp_path, "tenants.yaml", {"acme": {"plan": "trial", "active": False}})
    later = begin(tmp_path, policies=policies)
    assert ask(later, "tenants.show", tenant_id="acme") | {"projects": []} == {
        "tenant_id": "acme",
        "plan": "trial",
        "state": "suspended",
        "source": "policy",
        "created_at": None,
        "created_by": None,
        "projects": [],
    }
    with pytest.raises(AdmissionDeniedError) as refused:
        later.invocations.check(ADMIN, AgentId("planner"), ttl_s=60.0)
    assert failed(refused) == ["tenant_active"]
    later.close()


def test_a_plan_that_is_not_there_is_refused_and_one_that_went_allows_nothing(registrar: Registrar, tmp_path: Path) -> None:
    """A tenant without a plan in force can register nothing."""
    with pytest.raises(NotFoundError) as refused:
        make(registrar, "golden")
    assert failed(refused) == ["plan"]
    extra = changed_policies(tmp_path, "plans.yaml", {})
    plans = extra / "data" / "plans.yaml"
    text = plans.read_text()
    plans.write_text(
        text + "".join(f"\n{line}" for line in text[text.index("trial:") :].replace("trial:", "golden:").split("\n"))
    )
    with_it = begin(tmp_path, policies=extra)
    make(with_it, "golden")
    with_it.register(ADMIN, request("planner"))
    with_it.close()
    without = begin(tmp_path)
    with pytest.raises(AdmissionDeniedError) as denied:
        without.register(ADMIN, request("another"))
    assert "tenant_active" in failed(denied)
    without.close()


def test_an_agent_belongs_to_the_project_of_who_registers_it(registrar: Registrar) -> None:
    """Projects are made by operators, also of a declared tenant; every tenant has one."""
    make(registrar)
    for tenant in ("acme", "default"):
        ask(registrar, "projects.make", {"project_id": "web"}, tenant_id=tenant)
        with pytest.raises(ConflictError):
            ask(registrar, "projects.make", {"project_id": "web"}, tenant_id=tenant)
        assert ask(registrar, "tenants.show", tenant_id=tenant)["projects"] == ["default", "web"]
    with pytest.raises(NotFoundError):
        ask(registrar, "projects.make", {"project_id": "web"}, tenant_id="nobody")
    of_web = Principal(ACME, ProjectId("web"), "key:web", ROLE_SCOPES[Role.DEVELOPER])
    assert registrar.register(of_web, request("planner")).record.to_public()["project"] == "web"


def test_tenants_are_listed_page_by_page(registrar: Registrar) -> None:
    """Declared and made ones in one order, each once."""
    for name in ("acme", "zebra", "mid"):
        ask(registrar, "tenants.make", {"tenant_id": name, "plan": "trial"})
    seen: list[tuple[str, str]] = []
    after = ""
    while True:
        page = ask(registrar, "tenants.list", after=after, limit="2")
        seen += [(t["tenant_id"], t["source"]) for t in page["tenants"]]
        if not (after := page["next"]):
            break
    made, declared = "administrator", "policy"
    assert seen == [("acme", made), ("default", declared), ("mid", made), ("trial", declared), ("zebra", made)]


def test_only_an_operator_administers_tenants(registrar: Registrar) -> None:
    """Whoever runs a tenant is told the same whether the tenant that they name is there or not."""
    make(registrar)
    for operation in ("tenants.list", "tenants.make", "tenants.show", "tenants.change", "projects.list", "projects.make"):
        said = set()
        for name in ("acme", "default", "nobody"):
            with pytest.raises(AdmissionDeniedError) as refused:
                ask(registrar, operation, {}, who=ADMIN, tenant_id=name)
            said.add(str(refused.value))
        assert len(said) == 1


def test_each_change_is_a_fact_on_disk_before_its_effect(
    registrar: Registrar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: TenancyJournal.change. What can't be recorded does not happen."""
    make(registrar)
    ask(registrar, "tenants.change", {"state": "suspended"}, tenant_id="acme")
    ask(registrar, "projects.make", {"project_id": "web"}, tenant_id="acme")
    written = [(e.action, e.outcome.value, e.tenant_id, e.object_id, e.actor, e.request_id) for e in facts(tmp_path)]
    assert written == [
        (action, outcome, "acme", thing, "key:test", "r1")
        for action, thing in (("tenancy:tenant:make", "acme"), ("tenancy:tenant:change", "acme"), ("tenancy:project:make", "web"))
        for outcome in ("allowed", "done")
    ]

    def full() -> int:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(registrar._journal._sink, "sync", full)
    for operation, body in (
        ("tenants.make", {"tenant_id": "other", "plan": "trial"}),
        ("tenants.change", {"state": "active"}),
        ("projects.make", {"project_id": "more"}),
        ("keys.make", {"name": "k", "role": "caller"}),
    ):
        with pytest.raises(StorageError):
            ask(registrar, operation, body, tenant_id="acme")
    monkeypatch.undo()
    assert [t["tenant_id"] for t in ask(registrar, "tenants.list")["tenants"]] == ["acme", "default", "trial"]
    assert ask(registrar, "tenants.show", tenant_id="acme")["state"] == "suspended"
    assert [p["project_id"] for p in ask(registrar, "projects.list", tenant_id="acme")["projects"]] == ["default", "web"]
    assert ask(registrar, "keys.list")["keys"] == []


def test_a_deposed_governor_changes_nothing(registrar: Registrar, tmp_path: Path) -> None:
    """The fence holds for tenants and keys as it does for agents, and what was allowed is void."""
    key = ask(registrar, "keys.make", {"name": "k", "role": "caller"})
    later = begin(tmp_path)
    for operation, body in (
        ("tenants.make", {"tenant_id": "acme", "plan": "trial"}),
        ("keys.make", {"name": "k", "role": "caller"}),
        ("keys.rotate", {"overlap_s": 0}),
        ("keys.revoke", None),
    ):
        with pytest.raises(DeposedError):
            ask(registrar, operation, body, key_id=key["key_id"])
    assert [e.outcome for e in facts(tmp_path)][2:] == [AuditOutcome.ALLOWED, AuditOutcome.VOID] * 4
    assert ask(later, "keys.list")["keys"] == [{k: v for k, v in key.items() if k != "key"}]
    later.close()


def test_a_wrong_body_names_its_fields(registrar: Registrar) -> None:
    """As everywhere: unknown, missing and odd fields, each by its name, and nothing is changed."""
    for operation, body, wrong in (
        ("tenants.make", {"tenant_id": "A/b", "plan": "trial", "x": 1}, {"tenant_id", "x"}),
        ("tenants.change", {}, {"body"}),
        ("tenants.change", {"state": "gone"}, {"state"}),
        ("projects.make", {}, {"project_id"}),
        ("keys.make", {"name": "\n", "role": "king"}, {"name", "role"}),
        ("keys.make", {"name": "k"}, {"body"}),
        ("keys.make", {"name": "k", "role": "caller", "scopes": ["sovereign:agents:read"]}, {"body"}),
        ("keys.make", {"name": "k", "scopes": []}, {"scopes"}),
        ("keys.make", {"name": "k", "role": "caller", "expires_in_s": 0}, {"expires_in_s"}),
        ("keys.rotate", {"overlap_s": -1}, {"overlap_s"}),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            ask(registrar, operation, body, tenant_id="trial" if operation == "projects.make" else "default", key_id="0" * 16)
        assert set(failed(refused)) == wrong, (operation, body)


def test_agents_of_a_made_tenant_reach_what_its_plan_does(registrar: Registrar) -> None:
    """As a declared tenant's do; nothing once it is suspended."""
    make(registrar)
    made = registrar.register(ADMIN, request("planner", security_policy={"network_access": ["external_apis"]}))
    assert "*.wikipedia.org" in registrar.egress_hosts(made.record)
    ask(registrar, "tenants.change", {"state": "suspended"}, tenant_id="acme")
    assert registrar.egress_hosts(made.record) == ()


def test_the_standing_of_a_made_tenant_is_part_of_the_input(registrar: Registrar) -> None:
    """So a decision can be asked again years later; of a declared tenant, and from anybody else, there is no such word."""
    make(registrar)
    asked = invocation_request(ADMIN, "invoke", ACME).input_json
    engine = registrar._policy.now.engine
    assert isinstance(engine, StandingEngine)
    complete = engine.complete
    assert json.loads(complete(asked))["standing"] == {"plan": "standard", "active": True}
    said = json.dumps(json.loads(asked) | {"standing": {"plan": "standard", "active": True}}).encode()
    assert "standing" not in json.loads(complete(said.replace(b'"acme"', b'"nobody"')))
    declared = invocation_request(principal(), "invoke", DEFAULT).input_json
    assert json.loads(complete(declared)) == json.loads(declared)
