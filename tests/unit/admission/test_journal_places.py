"""Where an agent's journal is, is known when its process says where it is, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import wiring
from cluster.admission.registrar import Registrar
from cluster.agents.registration import parse_registration
from cluster.coordination.journals import journal_node
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings

TENANT, AGENT = TenantId("default"), AgentId("planner")
OWNER = Principal(TENANT, ProjectId("default"), "key:test", frozenset(Scope))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path)


@pytest.fixture
def registrar(settings: Settings) -> Iterator[Registrar]:
    wiring.sign_policies(settings)
    opened = wiring.build_registrar(settings)
    opened.register(OWNER, parse_registration({"agent_id": AGENT, "capabilities": ["conversation"]}))
    yield opened
    opened.close()


def place(settings: Settings, generation: int) -> str | None:
    """Return the node that the list of journals has for a generation."""
    store = wiring.open_coordination(settings)
    try:
        return journal_node(store, f"agent.{TENANT}.{AGENT}", generation)
    finally:
        store.close()


@pytest.mark.parametrize("node", ["w1", ""])
def test_a_journal_gets_its_node_when_its_process_answers(settings: Settings, registrar: Registrar, node: str) -> None:
    """It is registered before its first fact all the same; a process that names no node is on the governor's."""
    _, generation = registrar.begin_start(TENANT, AGENT)
    assert place(settings, generation) == ""
    registrar.mark_live(TENANT, AGENT, generation, "127.0.0.1:1", node)
    assert place(settings, generation) == (node or wiring.node_name(settings))
