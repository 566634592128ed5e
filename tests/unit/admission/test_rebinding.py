"""What the ledger says when a process goes from one agent to another: one transaction, after which it stands for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError
from cluster.agents.lifecycle import AgentState
from cluster.agents.record import AgentRecord
from cluster.errors import NotFoundError, StaleGenerationError
from cluster.identity.ids import AgentId
from tests.governors import DEFAULT, assert_whole, begin, facts, principal, request

A, B = AgentId("a"), AgentId("b")


@pytest.fixture
def governor(tmp_path: Path) -> Iterator[Registrar]:
    """A governor with two agents: `a` is starting, `b` is live."""
    opened = begin(tmp_path)
    for agent in (A, B):
        opened.register(principal(), request(agent))
        opened.begin_start(DEFAULT, agent)
    opened.mark_live(DEFAULT, B, 1, "h:1")
    yield opened
    opened.close()


def processes(governor: Registrar) -> dict[str, str]:
    return {row.process: row.agent_id for row in governor.live_rows()}


def test_a_process_stands_for_one_agent_at_every_instant(governor: Registrar, tmp_path: Path) -> None:
    """The other is passive and the waking one holds its process, both at once; both steps are on record."""
    (process,) = (p for p, agent in processes(governor).items() if agent == B)
    governor.rebind(DEFAULT, A, 1, B, 1)
    assert processes(governor) == {process: "a"}
    assert governor.get(DEFAULT, B).state is AgentState.PASSIVE
    assert governor.mark_live(DEFAULT, A, 1, "h:2").lives[0].process == process
    assert [(e.object_id, e.detail["event"], e.reason) for e in facts(tmp_path)[-3:-1]] == [
        ("b", "drained", "rebound to a"),
        ("a", "wake", "in the process of b"),
    ]
    assert governor.begin_start(DEFAULT, B)[1] == 2
    assert_whole(tmp_path, governor)


def test_no_two_generations_ever_share_a_process_name(governor: Registrar) -> None:
    """A killed process's name is never given again, so it leads to nothing (threat 83)."""
    seen = [row.process for row in governor.live_rows()]
    for generation in range(2, 6):
        governor.mark_passive(DEFAULT, B, generation - 1, "lost")
        record, _ = governor.begin_start(DEFAULT, B)
        seen.append(record.lives[0].process)
    assert len(set(seen)) == len(seen) == 6
    assert all(name.startswith("agent:default:") for name in seen)


def test_a_revoked_agent_gets_no_process(governor: Registrar) -> None:
    """Removed while it was to start, it does not wake in another's process either; the other's row is as it was."""
    governor.remove(DEFAULT, A, principal())
    with pytest.raises(NotFoundError):
        governor.rebind(DEFAULT, A, 1, B, 1)
    assert governor.get(DEFAULT, B).state is AgentState.LIVE
    governor.mark_passive(DEFAULT, A, 1, "start_failed")
    assert list(processes(governor).values()) == ["b"]


def test_a_revoked_agents_process_goes_on_as_another_and_its_quota_returns(governor: Registrar, tmp_path: Path) -> None:
    """With its process gone to another agent nothing of it is left: its row ends in the same transaction."""
    governor.remove(DEFAULT, B, principal())
    governor.rebind(DEFAULT, A, 1, B, 1)
    assert assert_whole(tmp_path, governor) == ["a"]
    assert list(processes(governor).values()) == ["a"]


def test_a_generation_that_is_over_neither_gives_nor_gets_a_process(governor: Registrar) -> None:
    """Whatever happened meanwhile, nothing is changed then."""
    before = governor.live_rows()
    for mine, theirs in ((2, 1), (1, 2)):
        with pytest.raises(StaleGenerationError):
            governor.rebind(DEFAULT, A, mine, B, theirs)
    assert governor.live_rows() == before
    governor.mark_live(DEFAULT, A, 1, "h:2")
    with pytest.raises(StaleGenerationError):
        governor.rebind(DEFAULT, A, 1, B, 1)


def test_an_earlier_governor_binds_nothing(governor: Registrar, tmp_path: Path) -> None:
    """It changes no row once a later one has begun."""
    later = begin(tmp_path)
    with pytest.raises(DeposedError):
        governor.rebind(DEFAULT, A, 1, B, 1)
    assert later.get(DEFAULT, B).state is AgentState.LIVE
    later.close()


@pytest.mark.parametrize(("state", "lives"), [("live", 1), ("revoked", 1), ("passive", 0)])
def test_a_row_of_before_names_its_process_after_its_agent(governor: Registrar, state: str, lives: int) -> None:
    """A row that an earlier version left is read as it was meant, so that its process is found."""
    stored = governor.get(DEFAULT, B).to_json()
    del stored["lives"]
    read = AgentRecord.from_json(stored | {"state": state, "address": "h:1"})
    assert [life.process for life in read.lives] == ["agent:default:b:g1"] * lives
