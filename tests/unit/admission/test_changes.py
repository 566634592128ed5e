"""Changes of registered agents: the difference is admitted, by a new decision, and takes effect as a new generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.registrar import Registrar
from cluster.agents.lifecycle import AgentState
from cluster.agents.quantity import parse_cpu
from cluster.agents.record import AgentRecord
from cluster.errors import (
    AdmissionDeniedError,
    IllegalTransitionError,
    NotFoundError,
    PreconditionFailedError,
    QuotaExceededError,
    StorageError,
)
from cluster.identity.ids import AgentId
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditOutcome
from cluster.journal.fact import Fact
from cluster.journal.writer import JournalWriter
from tests.governors import DEFAULT, assert_whole, begin, changed_policies, facts, open_store, principal, request

A = AgentId("a")


@pytest.fixture
def governor(tmp_path: Path) -> Iterator[Registrar]:
    """A governor whose plan has room for 1 CPU and 4 processes."""
    quota = {"cpu": "1", "memory": "64Gi", "agents": 4}
    governor = begin(tmp_path, policies=changed_policies(tmp_path, "plans.yaml", {"standard.quota": quota}))
    yield governor
    governor.close()


def held(governor: Registrar) -> tuple[int, int]:
    """CPU milli and agents that the tenant holds."""
    quota = governor.quota(DEFAULT)
    return quota["cpu_milli"]["used"], quota["agents"]["used"]


def change(governor: Registrar, **more: Any) -> AgentRecord:
    return governor.change(principal(), request("a", **more))[0]


def test_a_change_is_admitted_as_the_difference(governor: Registrar, tmp_path: Path) -> None:
    """Growth that fits beside what others hold is admitted though old and new together would not, by a decision of its own."""
    first = governor.register(principal(), request("a", cpu="600m")).record
    governor.register(principal(), request("b", cpu="100m"))
    after, changed = governor.change(principal(), request("a", cpu="900m", budget={"tokens": 7}), request_id="r-2")
    assert changed
    assert held(governor) == (1_000, 2)
    assert after.decision_id != first.decision_id
    assert governor.get(DEFAULT, A) == after
    assert (after.created_us, after.generation, after.state) == (first.created_us, 0, AgentState.PASSIVE)
    assert (after.decision_id, "a", after.spec.budget) in governor.reservations(DEFAULT)
    decided, outcome = facts(tmp_path)[-2:]
    assert (decided.action, decided.detail["changes"], decided.request_id) == (
        AuditAction.ADMISSION_DECIDE,
        first.decision_id,
        "r-2",
    )
    assert (outcome.outcome, outcome.decision_id) == (AuditOutcome.DONE, after.decision_id)
    assert assert_whole(tmp_path, governor) == ["a", "b"]


@pytest.mark.parametrize(
    ("more", "bounds"),
    [({"cpu": "901m"}, {"quota.cpu"}), ({"cpu": "300m", "max_replicas": 4}, {"quota.cpu", "quota.agents"})],
)
def test_growth_that_does_not_fit_changes_nothing(
    governor: Registrar, tmp_path: Path, more: dict[str, Any], bounds: set[str]
) -> None:
    """The refusal says what is left; the old spec, its quota and its reservation stand, and the decision is void."""
    before = governor.register(principal(), request("a", cpu="600m")).record
    governor.register(principal(), request("b", cpu="100m"))
    with pytest.raises(QuotaExceededError) as refused:
        change(governor, **more)
    assert {e.field for e in refused.value.errors} == bounds
    assert governor.get(DEFAULT, A) == before
    assert facts(tmp_path)[-1].outcome is AuditOutcome.VOID
    assert assert_whole(tmp_path, governor) == ["a", "b"]


def test_the_policy_decides_on_a_change(governor: Registrar, tmp_path: Path) -> None:
    """What may not be registered can't be changed to either; without the scope nothing can."""
    before = governor.register(principal(), request("a")).record
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.change(principal(), request("a", "payment_execution"))
    assert "capability_allowed" in {e.field for e in refused.value.errors}
    few = principal(scopes=frozenset(Scope) - {Scope.AGENTS_REGISTER})
    for same_or_not in (request("a"), request("a", cpu="200m")):
        with pytest.raises(AdmissionDeniedError):
            governor.change(few, same_or_not)
    assert governor.get(DEFAULT, A) == before
    assert assert_whole(tmp_path, governor) == ["a"]


def test_less_is_always_admitted_also_above_a_lowered_quota(governor: Registrar, tmp_path: Path) -> None:
    """After a quota was lowered below what is held, an agent can still become smaller, and not larger in anything."""
    governor.register(principal(), request("a", cpu="600m"))
    governor.close()
    lower = {"standard.quota": {"cpu": "100m", "memory": "64Gi", "agents": 4}}
    lowered = begin(tmp_path, policies=changed_policies(tmp_path, "plans.yaml", lower))
    change(lowered, cpu="300m")
    with pytest.raises(QuotaExceededError):
        change(lowered, cpu="301m")
    assert held(lowered) == (300, 1)
    lowered.close()


def test_only_the_spec_that_was_read_is_changed(governor: Registrar) -> None:
    """If-Match names the digest; another one is refused before anything is decided, and "*" is any."""
    first = governor.register(principal(), request("a")).record
    second, _ = governor.change(principal(), request("a", cpu="200m"), if_match=first.spec.digest)
    with pytest.raises(PreconditionFailedError):
        governor.change(principal(), request("a", cpu="300m"), if_match=first.spec.digest)
    assert governor.get(DEFAULT, A) == second
    # Its own repetition, after a lost answer, is no other change.
    assert governor.change(principal(), request("a", cpu="200m"), if_match=first.spec.digest) == (second, False)
    assert governor.change(principal(), request("a", cpu="300m"), if_match="*")[1]


def test_what_is_not_there_or_another_tenants_is_not_changed(governor: Registrar) -> None:
    """An agent that is unknown or revoked is not found."""
    with pytest.raises(NotFoundError):
        change(governor)
    governor.register(principal(), request("a"))
    governor.begin_start(DEFAULT, A)
    governor.remove(DEFAULT, A, principal())
    with pytest.raises(NotFoundError):
        change(governor, cpu="200m")


def test_a_live_agent_holds_what_either_spec_takes_until_the_old_one_has_ended(governor: Registrar, tmp_path: Path) -> None:
    """Quota is given back when the last process of the old spec has ended, and none of the new one starts before."""
    governor.register(principal(), request("a", cpu="400m", max_replicas=2))
    first, second = (governor.begin_start(DEFAULT, A)[1] for _ in range(2))
    after = change(governor, cpu="200m", max_replicas=3)
    assert held(governor) == (800, 3)
    assert {r.generation: r.outdated for r in governor.live_rows()} == {first: True, second: True}
    assert AgentRecord.from_bytes(after.to_bytes()) == after
    with pytest.raises(IllegalTransitionError):
        governor.begin_start(DEFAULT, A)
    governor.mark_passive(DEFAULT, A, first, "lost")
    assert held(governor) == (800, 3)
    with pytest.raises(IllegalTransitionError):
        governor.begin_start(DEFAULT, A)
    governor.mark_passive(DEFAULT, A, second, "lost")
    assert held(governor) == (600, 3)
    record, third = governor.begin_start(DEFAULT, A)
    assert (third, record.spec.resources.cpu_milli) == (3, parse_cpu("200m"))
    assert [r.outdated for r in governor.live_rows()] == [False]
    assert assert_whole(tmp_path, governor) == ["a"]


def test_a_removal_gives_back_all_that_a_changed_agent_held(governor: Registrar, tmp_path: Path) -> None:
    """Also what was held for processes of its old spec, changed twice while they lived."""
    governor.register(principal(), request("a", cpu="800m"))
    _, generation = governor.begin_start(DEFAULT, A)
    change(governor, cpu="100m")
    change(governor, cpu="200m", max_replicas=2)
    assert held(governor) == (800, 2)
    governor.remove(DEFAULT, A, principal())
    assert held(governor) == (800, 2)
    governor.mark_passive(DEFAULT, A, generation, "drained")
    assert held(governor) == (0, 0)
    assert assert_whole(tmp_path, governor) == []


def test_an_agent_that_is_always_there_is_listed_as_long_as_it_is_to_be(governor: Registrar) -> None:
    """A change of `min_replicas` keeps the list of agents that have processes while nobody calls."""
    governor.register(principal(), request("a"))
    for least, kept in ((1, [(DEFAULT, A)]), (0, [])):
        change(governor, min_replicas=least)
        assert governor.kept() == kept


def test_a_start_that_meets_a_change_decides_again(governor: Registrar, tmp_path: Path) -> None:
    """The decision to wake one spec says nothing about another: it is void, and the new spec is decided on."""
    governor.register(principal(), request("a"))
    registry = governor._registry
    retry, changes = registry.retry, [1]

    def changed_before(attempt: Any) -> Any:
        if changes:
            changes.clear()
            registry.retry = retry  # type: ignore[method-assign]  # once
            change(governor, cpu="200m")
        return retry(attempt)

    registry.retry = changed_before  # type: ignore[method-assign]  # the change comes between decision and transaction
    record, _ = governor.begin_start(DEFAULT, A)
    assert record.spec.resources.cpu_milli == 200
    wakes = [e.outcome for e in facts(tmp_path) if e.action == AuditAction.LIFECYCLE_TRANSITION]
    assert wakes == [AuditOutcome.ALLOWED, AuditOutcome.VOID, AuditOutcome.ALLOWED, AuditOutcome.DONE]


class Unsynced:
    """A real journal whose disk fails."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self.broken = False

    def append(self, fact: Fact) -> int:
        return self._journal.append(fact)

    def sync(self) -> int:
        if self.broken:
            raise StorageError("The disk is full.")
        return self._journal.sync()

    def close(self) -> None:
        self._journal.close()


def test_a_change_that_can_not_be_recorded_does_not_happen(tmp_path: Path) -> None:
    """The decision is on disk before the row changes, or it does not change."""
    from cluster.coordination.journals import register_journal

    store = open_store(tmp_path)
    epoch = register_journal(store, "governance", "test")
    sink = Unsynced(JournalWriter(tmp_path / "journal", "governance", epoch))
    governor = begin(tmp_path, store=store, sink=sink, epoch=epoch)
    before = governor.register(principal(), request("a")).record
    sink.broken = True
    with pytest.raises(StorageError):
        change(governor, cpu="200m")
    assert governor.get(DEFAULT, A) == before
    sink.broken = False
    governor.close()
