"""Who registers, wakes or removes an agent: what is decided, written, recorded and answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.bundle import load_bundle
from cluster.admission.policy_engine import PolicyEngineError
from cluster.admission.registrar import Registrar
from cluster.admission.registry import DeposedError
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.agents.lifecycle import AgentState
from cluster.agents.registration import parse_registration
from cluster.coordination.journals import register_journal, registered_epochs
from cluster.errors import (
    AdmissionDeniedError,
    ConflictError,
    IllegalTransitionError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
    SovereignError,
    StaleGenerationError,
    StorageError,
)
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditOutcome
from cluster.journal.fact import Fact
from cluster.journal.writer import JournalWriter
from cluster.settings import PROJECT_ROOT
from tests.governors import DEFAULT, POLICIES, TRIAL, assert_whole, begin, changed_policies, facts, open_store, principal, request

A = AgentId("a")
EXAMPLE: dict[str, Any] = json.loads((PROJECT_ROOT / "examples" / "strategic_planner.json").read_text())


@pytest.fixture
def governor(tmp_path: Path) -> Iterator[Registrar]:
    governor = begin(tmp_path)
    yield governor
    governor.close()


def test_the_example_is_registered(governor: Registrar, tmp_path: Path) -> None:
    """Example 1 gets its answer, its tools, its row and its share of the quota; decision and outcome are on record."""
    registration = governor.register(principal(), parse_registration(EXAMPLE), request_id="r-1")
    assert registration.answer == {
        "status": "registered",
        "agent_id": "strategic-planner-001",
        "security_clearance": "validated",
    }
    record = governor.get(DEFAULT, AgentId("strategic-planner-001"))
    assert record == registration.record
    assert (record.state, record.tools) == (AgentState.PASSIVE, ("data_analysis", "report_generation", "web_search"))
    assert {k: v["used"] for k, v in governor.quota(DEFAULT).items()} == {"cpu_milli": 1000, "memory_bytes": 2 << 30, "agents": 1}
    decided, outcome = facts(tmp_path)
    assert (decided.action, decided.outcome) == (AuditAction.ADMISSION_DECIDE, AuditOutcome.ALLOWED)
    assert (outcome.action, outcome.outcome) == (AuditAction.ADMISSION_OUTCOME, AuditOutcome.DONE)
    assert decided.decision_id == outcome.decision_id == record.decision_id
    assert {e.request_id for e in (decided, outcome)} == {"r-1"}
    assert decided.detail["digest"] == record.policy_digest
    assert assert_whole(tmp_path, governor) == ["strategic-planner-001"]


def test_a_bare_registration_takes_the_default_policy(governor: Registrar) -> None:
    """Id and capabilities alone give the tenant's default resources, model and iterations, and all tools that follow."""
    record = governor.register(principal(), parse_registration({"agent_id": "a", "capabilities": ["summarization"]})).record
    public = record.to_public()
    assert public["resources"] == {"cpu": "100m", "memory": "256Mi"}
    assert (public["model"], public["max_iterations"], public["tools"]) == ("local:smollm2", 10, ["report_generation"])


def test_a_refusal_names_every_failed_check_and_leaves_one_fact(governor: Registrar, tmp_path: Path) -> None:
    """Unauthorised capabilities and all else that failed are named; nothing is written but the refusal."""
    asked = request("a", "payment_execution", "market_analysis", security_policy={"data_access_level": "confidential_read_write"})
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register(principal(), asked)
    said = {e.field: e.message for e in refused.value.errors}
    assert said.keys() == {"capability_allowed", "data_access_level_allowed", "obligation_human_approval"}
    assert "payment_execution" in said["capability_allowed"]
    assert "market_analysis" not in said["capability_allowed"]
    (fact,) = facts(tmp_path)
    assert (fact.outcome, fact.decision_id) == (AuditOutcome.DENIED, refused.value.hint.split()[-1].rstrip("."))
    assert fact.detail["failed"].keys() >= {"capability_allowed", "data_access_level_allowed"}
    assert assert_whole(tmp_path, governor) == []
    with pytest.raises(NotFoundError):
        governor.get(DEFAULT, A)


def test_an_obligation_that_nobody_met_denies(tmp_path: Path) -> None:
    """A capability that needs an approval is refused even where the plan includes it."""
    policies = changed_policies(tmp_path, "plans.yaml", {"standard.capabilities": ["payment_execution", "conversation"]})
    governor = begin(tmp_path, policies=policies)
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register(principal(), request("a", "payment_execution"))
    assert [e.field for e in refused.value.errors] == ["obligation_human_approval"]
    governor.close()


@pytest.mark.parametrize("tenant", ["nobody", "trial"])
def test_a_tenant_that_is_not_active_registers_nothing(tmp_path: Path, tenant: str) -> None:
    """Unknown and suspended tenants are refused by name of the check."""
    policies = changed_policies(tmp_path, "tenants.yaml", {"trial": {"plan": "trial", "active": False}})
    governor = begin(tmp_path, policies=policies)
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.register(principal(TenantId(tenant)), request("a"))
    assert "tenant_active" in [e.field for e in refused.value.errors]
    governor.close()


def test_the_scope_is_needed_also_for_what_is_registered(governor: Registrar) -> None:
    """Without the scope to register, neither a new agent nor the repetition of an old one gets an answer."""
    governor.register(principal(), request("a"))
    for agent in ("a", "b"):
        with pytest.raises(AdmissionDeniedError, match="registration_allowed"):
            governor.register(principal(scopes=frozenset({Scope.AGENTS_INVOKE})), request(agent))


def test_the_same_again_is_the_same_answer(governor: Registrar, tmp_path: Path) -> None:
    """The same spec under the same id changes nothing, counts nothing twice and records no second decision."""
    first = governor.register(principal(), request("a", cpu="1"))
    again = governor.register(principal(), request("a", cpu="1000m"))
    assert (first.created, again.created) == (True, False)
    assert (again.answer, again.record) == (first.answer, first.record)
    assert assert_whole(tmp_path, governor) == ["a"]
    assert len(facts(tmp_path)) == 2


def test_another_spec_under_the_same_id_conflicts(governor: Registrar, tmp_path: Path) -> None:
    """An id stands for one spec until it is removed; another tenant's same id is another agent."""
    governor.register(principal(), request("a"))
    with pytest.raises(ConflictError):
        governor.register(principal(), request("a", cpu="200m"))
    governor.register(principal(TRIAL), request("a", cpu="200m"))
    assert assert_whole(tmp_path, governor) == ["a"]


def test_a_key_stands_for_one_request(governor: Registrar) -> None:
    """The same key and request get the same answer; the same key for another request conflicts, in its tenant alone."""
    asked = request("a")
    governor.register(principal(), asked, idempotency_key="k")
    assert not governor.register(principal(), asked, idempotency_key="k").created
    for other in (request("b"), request("a", cpu="1")):
        with pytest.raises(ConflictError, match="Idempotency-Key"):
            governor.register(principal(), other, idempotency_key="k")
    assert governor.register(principal(TRIAL), request("b"), idempotency_key="k").created
    governor.remove(DEFAULT, A, principal())
    assert governor.register(principal(), request("b"), idempotency_key="k").created
    for odd in ("é", "a\n", "x" * 256):
        with pytest.raises(ConflictError):
            governor.register(principal(), request("c"), idempotency_key=odd)


def test_the_quota_says_what_is_used_asked_and_left(governor: Registrar, tmp_path: Path) -> None:
    """What does not fit is refused with the numbers, its decision is void, and the quota is as it was."""
    governor.register(principal(TRIAL), request("a", cpu="1", memory="2Gi"))
    governor.register(principal(TRIAL), request("b", cpu="500m", memory="1Gi"))
    with pytest.raises(QuotaExceededError) as refused:
        governor.register(principal(TRIAL), request("c", cpu="501m", memory="2Gi"))
    said = {e.field: e.message for e in refused.value.errors}
    assert said == {
        "quota.cpu": "1500m of 2 is used, 501m asked for, 500m left",
        "quota.memory": "3Gi of 4Gi is used, 2Gi asked for, 1Gi left",
    }
    assert facts(tmp_path)[-1].outcome is AuditOutcome.VOID
    governor.register(principal(TRIAL), request("c", cpu="500m", memory="1Gi"))
    assert governor.list(TRIAL, "", 10)[-1].spec.agent_id == "c"
    assert governor.quota(TRIAL)["cpu_milli"] == {"used": 2000, "limit": 2000}


def test_the_demo_fits(governor: Registrar) -> None:
    """The default plan admits Example 1 beside an agent of half a CPU."""
    governor.register(principal(), parse_registration(EXAMPLE))
    governor.register(principal(), request("b", cpu="500m", memory="512Mi"))


class BrokenJournal:
    """A journal on a disk that fails, at its n-th use."""

    def __init__(self, journal: JournalWriter, fails_at: int) -> None:
        self._journal = journal
        self._left = fails_at

    def _use(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise StorageError("The disk is full.")

    def append(self, fact: Fact) -> int:
        self._use()
        return self._journal.append(fact)

    def sync(self) -> int:
        self._use()
        return self._journal.sync()

    def close(self) -> None:
        self._journal.close()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_what_cant_be_recorded_does_not_happen(tmp_path: Path, fails_at: int) -> None:
    """A decision that can't be written or synced is no decision: no row, no quota, and no wake or removal either."""
    first = begin(tmp_path)
    first.register(principal(), request("kept"))
    first.close()
    store = open_store(tmp_path)
    epoch = register_journal(store, "governance", "test")
    sink = BrokenJournal(JournalWriter(tmp_path / "journal", "governance", epoch), fails_at)
    governor = begin(tmp_path, store=store, sink=sink, epoch=epoch)
    for use in (
        lambda: governor.register(principal(), request("a")),
        lambda: governor.remove(DEFAULT, AgentId("kept"), principal()),
        lambda: governor.begin_start(DEFAULT, AgentId("kept")),
    ):
        with pytest.raises(StorageError):
            use()
    governor.close()
    after = begin(tmp_path)
    after.recover()
    assert assert_whole(tmp_path, after) == ["kept"]
    assert after.get(DEFAULT, AgentId("kept")).state is AgentState.PASSIVE
    after.close()


class BrokenEngine:
    """An engine that never answers."""

    revision, digest = "r", "d"

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        raise PolicyEngineError("it broke")


def test_an_engine_that_fails_denies_and_is_recorded(tmp_path: Path) -> None:
    """Registering, waking and removing are refused while the policy can't be asked (threat 28)."""
    first = begin(tmp_path)
    first.register(principal(), request("kept"))
    first.close()
    governor = begin(tmp_path, engine=BrokenEngine())
    for use in (
        lambda: governor.register(principal(), request("a")),
        lambda: governor.remove(DEFAULT, AgentId("kept"), principal()),
        lambda: governor.begin_start(DEFAULT, AgentId("kept")),
    ):
        with pytest.raises(AdmissionDeniedError, match="policy_engine"):
            use()
    assert [e.outcome for e in facts(tmp_path)[-3:]] == [AuditOutcome.DENIED] * 3
    assert assert_whole(tmp_path, governor) == ["kept"]
    governor.close()


def test_a_tenant_sees_only_its_own(governor: Registrar) -> None:
    """Another tenant's agent is not found by get, wake, remove or list, in the same words as none at all."""
    governor.register(principal(), request("a"))
    said = set()
    for tenant, agent in ((TRIAL, A), (DEFAULT, AgentId("none"))):
        for use in (
            governor.get,
            lambda t, a: governor.remove(t, a, principal(t)),
        ):
            with pytest.raises(NotFoundError) as refused:
                use(tenant, agent)
            said.add(str(refused.value).replace("none", "a"))
        with pytest.raises(NotFoundError):
            governor.begin_start(tenant, agent)
    assert len(said) == 1
    assert governor.list(TRIAL, "", 10) == []
    # A principal of one tenant that names another's is told the same.
    with pytest.raises(NotFoundError):
        governor.remove(DEFAULT, A, principal(TRIAL))
    assert governor.get(DEFAULT, A)


def test_agents_are_listed_in_pages(governor: Registrar) -> None:
    """In order of id, after an id, up to a limit; those that are being removed are left out and the page is filled."""
    for number in range(7):
        governor.register(principal(), request(f"a{number}"))
    record, generation = governor.begin_start(DEFAULT, AgentId("a1"))
    governor.remove(DEFAULT, AgentId("a1"), principal())
    ids = [str(r.spec.agent_id) for r in governor.list(DEFAULT, "", 3)]
    assert ids == ["a0", "a2", "a3"]
    assert [str(r.spec.agent_id) for r in governor.list(DEFAULT, "a3", 10)] == ["a4", "a5", "a6"]
    assert governor.list(DEFAULT, "a6", 10) == []
    assert (record.state, generation) == (AgentState.STARTING, 1)


def test_a_passive_agent_is_removed_at_once(governor: Registrar, tmp_path: Path) -> None:
    """Its row goes, its quota comes back, decision and outcome are on record, and its id is free."""
    governor.register(principal(), request("a"))
    assert governor.remove(DEFAULT, A, principal()).state is AgentState.ABSENT
    with pytest.raises(NotFoundError):
        governor.remove(DEFAULT, A, principal())
    assert governor.quota(DEFAULT)["agents"]["used"] == 0
    assert [(e.outcome, e.detail["event"]) for e in facts(tmp_path)[-2:]] == [
        (AuditOutcome.ALLOWED, "remove"),
        (AuditOutcome.DONE, "remove"),
    ]
    assert governor.register(principal(), request("a", cpu="1")).created


def test_removal_needs_its_scope(governor: Registrar) -> None:
    """Who may register but not remove is refused by name of the check, and nothing is removed."""
    governor.register(principal(), request("a"))
    with pytest.raises(AdmissionDeniedError, match="scope_held"):
        governor.remove(DEFAULT, A, principal(scopes=frozenset({Scope.AGENTS_REGISTER})))
    assert governor.get(DEFAULT, A)


def test_a_life_from_wake_to_removal(governor: Registrar, tmp_path: Path) -> None:
    """Each step changes the record and the list of live agents, and each generation has a journal before its process."""
    governor.register(principal(), request("a"))
    record, generation = governor.begin_start(DEFAULT, A)
    assert (record.state, generation) == (AgentState.STARTING, 1)
    assert [(r.agent_id, r.generation, r.state) for r in governor.live_rows()] == [("a", 1, "starting")]
    assert governor.mark_live(DEFAULT, A, 1, "127.0.0.1:4000").lives[0].address == "127.0.0.1:4000"
    assert governor.live_rows()[0].address == "127.0.0.1:4000"
    assert governor.mark_draining(DEFAULT, A, 1).state is AgentState.DRAINING
    assert governor.mark_passive(DEFAULT, A, 1, "drained").state is AgentState.PASSIVE
    assert governor.mark_passive(DEFAULT, A, 1, "lost").state is AgentState.PASSIVE
    assert governor.live_rows() == []
    assert governor.begin_start(DEFAULT, A)[1] == 2
    store = open_store(tmp_path)
    assert registered_epochs(store, "agent.default.a") == [1, 2]
    store.close()


@pytest.mark.parametrize("reason", ["start_failed", "drained", "lost"])
@pytest.mark.parametrize("state", [AgentState.STARTING, AgentState.LIVE, AgentState.DRAINING])
def test_a_process_may_end_in_any_way_from_any_state(governor: Registrar, state: AgentState, reason: str) -> None:
    """However it ended, the agent is passive afterwards and wakes again."""
    governor.register(principal(), request("a"))
    governor.begin_start(DEFAULT, A)
    if state is not AgentState.STARTING:
        governor.mark_live(DEFAULT, A, 1, "h:1")
    if state is AgentState.DRAINING:
        governor.mark_draining(DEFAULT, A, 1)
    assert governor.mark_passive(DEFAULT, A, 1, reason).state is AgentState.PASSIVE
    assert governor.begin_start(DEFAULT, A)[1] == 2


def test_what_is_not_possible_changes_nothing(governor: Registrar) -> None:
    """A second start, a stale generation, an unknown reason and a step out of order are errors."""
    governor.register(principal(), request("a"))
    for use, error in (
        (lambda: governor.mark_live(DEFAULT, A, 0, "h:1"), IllegalTransitionError),
        (lambda: governor.mark_live(DEFAULT, A, 1, "h:1"), StaleGenerationError),
        (lambda: governor.mark_passive(DEFAULT, A, 0, "tired"), InvalidRequestError),
    ):
        with pytest.raises(error):
            use()
    governor.begin_start(DEFAULT, A)
    with pytest.raises(IllegalTransitionError, match="register → wake"):
        governor.begin_start(DEFAULT, A)
    governor.mark_passive(DEFAULT, A, 1, "lost")
    governor.begin_start(DEFAULT, A)
    # The process of the first generation reports late.
    for late in (lambda: governor.mark_live(DEFAULT, A, 1, "h:1"), lambda: governor.mark_passive(DEFAULT, A, 1, "lost")):
        with pytest.raises(StaleGenerationError):
            late()
    assert governor.get(DEFAULT, A).state is AgentState.STARTING


def test_an_agent_has_as_many_lives_at_once_as_was_admitted(governor: Registrar, tmp_path: Path) -> None:
    """Each has its own generation, process, journal and state; the quota counts all that may be, and one more is illegal."""
    governor.register(principal(), request("a", max_replicas=3))
    assert governor.quota(DEFAULT)["agents"]["used"] == 3
    assert [governor.begin_start(DEFAULT, A)[1] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(IllegalTransitionError):
        governor.begin_start(DEFAULT, A)
    governor.mark_live(DEFAULT, A, 2, "h:2")
    governor.mark_live(DEFAULT, A, 1, "h:1")
    governor.mark_draining(DEFAULT, A, 1)
    assert [(r.generation, r.state) for r in governor.live_rows()] == [(1, "draining"), (2, "live"), (3, "starting")]
    assert len({r.process for r in governor.live_rows()}) == 3
    assert governor.get(DEFAULT, A).state is AgentState.LIVE
    assert governor.mark_passive(DEFAULT, A, 2, "lost").state is AgentState.STARTING
    assert governor.begin_start(DEFAULT, A)[1] == 4
    store = open_store(tmp_path)
    assert registered_epochs(store, "agent.default.a") == [1, 2, 3, 4]
    store.close()
    governor.remove(DEFAULT, A, principal())
    assert governor.mark_passive(DEFAULT, A, 1, "drained").state is AgentState.REVOKED
    assert governor.mark_passive(DEFAULT, A, 3, "lost").state is AgentState.REVOKED
    assert governor.mark_passive(DEFAULT, A, 4, "lost").state is AgentState.ABSENT
    assert assert_whole(tmp_path, governor) == []


def test_agents_that_are_always_to_be_there_are_listed(governor: Registrar) -> None:
    """So that a governor finds them without reading every agent; a removed one is not listed any more."""
    for agent, least in (("a", 0), ("b", 1), ("c", 2)):
        governor.register(principal(), request(agent, min_replicas=least, max_replicas=2))
    assert governor.kept() == [("default", "b"), ("default", "c")]
    governor.remove(DEFAULT, AgentId("b"), principal())
    assert governor.kept() == [("default", "c")]


def test_one_of_many_starts_it(governor: Registrar) -> None:
    """Threads that wake the same agent at once start one generation."""
    governor.register(principal(), request("a"))
    started: list[int] = []
    refused: list[SovereignError] = []

    def wake() -> None:
        try:
            started.append(governor.begin_start(DEFAULT, A)[1])
        except SovereignError as e:
            refused.append(e)

    threads = [threading.Thread(target=wake) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == [1]
    assert {type(e) for e in refused} == {IllegalTransitionError}


def test_a_removed_agent_never_wakes_and_keeps_its_quota_until_its_process_ends(governor: Registrar, tmp_path: Path) -> None:
    """Revoked at once, not found by anyone, its quota held while its process may run, and its name not free before."""
    governor.register(principal(), request("a"), idempotency_key="k")
    governor.begin_start(DEFAULT, A)
    governor.mark_live(DEFAULT, A, 1, "h:1")
    assert governor.remove(DEFAULT, A, principal()).state is AgentState.REVOKED
    for use in (
        lambda: governor.get(DEFAULT, A),
        lambda: governor.begin_start(DEFAULT, A),
        lambda: governor.remove(DEFAULT, A, principal()),
    ):
        with pytest.raises(NotFoundError):
            use()
    with pytest.raises(IllegalTransitionError):
        governor.mark_live(DEFAULT, A, 1, "h:1")
    with pytest.raises(ConflictError, match="being removed"):
        governor.register(principal(), request("a"))
    assert governor.quota(DEFAULT)["agents"]["used"] == 1
    assert [r.state for r in governor.live_rows()] == ["revoked"]
    assert governor.mark_passive(DEFAULT, A, 1, "drained").state is AgentState.ABSENT
    assert assert_whole(tmp_path, governor) == []
    assert governor.live_rows() == []


def test_a_name_that_is_used_again_starts_above_its_last_generation(governor: Registrar) -> None:
    """No generation, and so no key, actor name or journal, comes back with the name (threat 83)."""
    for expected in (1, 2, 3):
        governor.register(principal(), request("a"))
        assert governor.begin_start(DEFAULT, A)[1] == expected
        governor.mark_passive(DEFAULT, A, expected, "lost")
        governor.remove(DEFAULT, A, principal())


def test_a_wake_is_decided_by_todays_policy(tmp_path: Path) -> None:
    """An agent whose capability left the plan after its registration does not start, and says why (threat 30)."""
    first = begin(tmp_path)
    first.register(principal(), request("a", "market_analysis"))
    assert first.check_activation(DEFAULT, A).allow
    first.close()
    policies = changed_policies(tmp_path, "plans.yaml", {"standard.capabilities": ["conversation"]})
    governor = begin(tmp_path, policies=policies)
    assert not governor.check_activation(DEFAULT, A).allow
    with pytest.raises(AdmissionDeniedError, match="market_analysis"):
        governor.begin_start(DEFAULT, A)
    assert governor.get(DEFAULT, A).state is AgentState.PASSIVE
    assert (facts(tmp_path)[-1].outcome, facts(tmp_path)[-1].detail["event"]) == (AuditOutcome.DENIED, "wake")
    governor.close()


def test_a_deposed_governor_changes_nothing(tmp_path: Path) -> None:
    """Once another has begun, the earlier one's registrations, wakes and removals are refused and leave nothing."""
    old = begin(tmp_path)
    old.register(principal(), request("a"))
    new = begin(tmp_path)
    for use in (
        lambda: old.register(principal(), request("b")),
        lambda: old.remove(DEFAULT, A, principal()),
        lambda: old.begin_start(DEFAULT, A),
    ):
        with pytest.raises(DeposedError):
            use()
    new.recover()
    assert assert_whole(tmp_path, new) == ["a"]
    assert new.get(DEFAULT, A).state is AgentState.PASSIVE
    old.close()
    new.close()


def test_recovery_reads_each_journal_once(tmp_path: Path) -> None:
    """A second governor finds nothing open; recovering twice writes nothing more."""
    first = begin(tmp_path)
    first.register(principal(), request("a"))
    first.close()
    second = begin(tmp_path)
    second.recover()
    second.recover()
    assert len(facts(tmp_path)) == 2
    second.close()


def test_recovery_passes_over_a_governor_that_never_wrote(tmp_path: Path) -> None:
    """A governor killed between the registration of its journal and its first fact leaves nothing to recover, and no harm."""
    store = open_store(tmp_path)
    register_journal(store, "governance", "test")
    store.close()
    governor = begin(tmp_path)
    governor.recover()
    assert governor.register(principal(), request("a")).created
    governor.close()


def test_policy_status_names_the_bundle(governor: Registrar) -> None:
    """Which policy decides here is told by revision, digest and number."""
    bundle = load_bundle(POLICIES)
    digest = RegorusPolicyEngine(bundle).digest
    assert governor.policy_status() == {"revision": bundle.revision, "digest": digest, "number": 0}
