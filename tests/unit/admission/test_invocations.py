"""Who may call an agent: callers by their scopes, and agents that hand work on by their own rights besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.registrar import Registrar
from cluster.errors import AdmissionDeniedError, NotFoundError
from cluster.identity.ids import AgentId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from tests.governors import TRIAL, begin, facts, principal, request

TTL_S = 60.0


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    """A governor with a parent that may ask others, and a child that may do nothing that its parent may not."""
    registrar = begin(tmp_path)
    registrar.recover()
    registrar.register(principal(), request("parent", "delegation", "summarization"))
    registrar.register(principal(), request("child", "summarization"))
    yield registrar
    registrar.close()


def agent(name: str, depth: int = 1) -> Principal:
    """The agent `name`, which asks at that depth on behalf of whoever called it."""
    return replace(principal(scopes=frozenset({Scope.AGENTS_INVOKE})), subject=f"agent:{name}", agent=name, depth=depth)


def decided(home: Path) -> list[AuditEvent]:
    return [event for event in facts(home) if event.action == AuditAction.DELEGATION_DECIDE]


def refused(registrar: Registrar, who: Principal, child: str = "child") -> list[str]:
    """Return the checks that failed."""
    with pytest.raises(AdmissionDeniedError) as error:
        registrar.invocations.check(who, AgentId(child), ttl_s=TTL_S)
    assert error.value.status == 403
    return [e.field for e in error.value.errors]


def test_an_agent_hands_work_to_one_with_no_more_rights(registrar: Registrar, tmp_path: Path) -> None:
    """And the decision is a fact that names both."""
    registrar.invocations.check(agent("parent"), AgentId("child"), ttl_s=TTL_S)
    (event,) = decided(tmp_path)
    assert (event.actor, event.object_id, event.outcome) == ("agent:parent", "child", AuditOutcome.DONE)


@pytest.mark.parametrize(
    ("capability", "policy", "failed"),
    [
        ("market_analysis", {}, "tools_within_parent"),
        ("summarization", {"network_access": ["external_apis"]}, "egress_within_parent"),
        ("summarization", {"data_access_level": "strategic_read_only"}, "data_access_within_parent"),
    ],
)
def test_threat_13_a_child_that_may_do_more_is_refused(
    registrar: Registrar, tmp_path: Path, capability: str, policy: dict[str, Any], failed: str
) -> None:
    """Control: Invocations._check_delegation. 403 with the check by its name, and a fact."""
    registrar.register(principal(), request("able", capability, security_policy=policy))
    assert failed in refused(registrar, agent("parent"), "able")
    (event,) = decided(tmp_path)
    assert event.outcome is AuditOutcome.DENIED


def test_work_is_handed_on_no_oftener_than_the_plan_says(registrar: Registrar) -> None:
    """The standard plan has three steps."""
    registrar.invocations.check(agent("parent", depth=3), AgentId("child"), ttl_s=TTL_S)
    assert refused(registrar, agent("parent", depth=4)) == ["depth_within_plan"]


def test_an_agent_does_not_ask_itself(registrar: Registrar) -> None:
    """It would wait for itself."""
    assert refused(registrar, agent("parent"), "parent") == ["not_itself"]


def test_agents_without_the_tool_do_not_ask(registrar: Registrar) -> None:
    """An agent that was not granted the tool holds no right to hand work on, whatever its process says."""
    registrar.register(principal(), request("other", "summarization"))
    assert refused(registrar, agent("other")) == ["parent_may_delegate"]


def test_another_tenants_agents_are_not_there(registrar: Registrar) -> None:
    """Neither as the one that is asked, nor as the one that asks."""
    registrar.register(principal(TRIAL), request("theirs", "summarization"))
    with pytest.raises(NotFoundError):
        registrar.invocations.check(agent("parent"), AgentId("theirs"), ttl_s=TTL_S)
    with pytest.raises(NotFoundError):
        registrar.invocations.check(agent("theirs"), AgentId("child"), ttl_s=TTL_S)
