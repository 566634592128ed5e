"""A new policy comes into force whole or not at all (threat 29), and what it overtook is decided again (threat 30)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.admission.bundle import read_policies
from cluster.admission.bundle_format import BundleArtefact, BundleRefusedError
from cluster.admission.bundle_shelf import ACCEPTED
from cluster.admission.registrar import WRITER_ID, Registrar
from cluster.admission.registry import DeposedError
from cluster.agents.gang_request import parse_gang
from cluster.agents.lifecycle import AgentState
from cluster.agents.registration import RegistrationRequest
from cluster.agents.spec import AgentSpec
from cluster.coordination.coordination import Coordination, Create, Op
from cluster.coordination.journals import register_journal
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.errors import AdmissionDeniedError, StorageError, UnavailableError
from cluster.identity.ids import AgentId
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact
from cluster.journal.writer import JournalWriter
from tests.bundles import Signer
from tests.governors import DEFAULT, POLICIES, assert_whole, begin, changed_policies, facts, open_store, principal, request
from tests.sizes import soak

A = AgentId("a")
MARKET = "market_analysis"


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    (tmp_path / "private").mkdir()
    return Signer(tmp_path / "private", tmp_path / "keys")


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    """Policies by which the default tenant's plan no longer has the capability that the tests register."""
    return changed_policies(tmp_path, "plans.yaml", {f"{plan_of_default()}.capabilities": ["conversation"]})


def plan_of_default() -> str:
    return str(yaml.safe_load((POLICIES / "data" / "tenants.yaml").read_text())[str(DEFAULT)]["plan"])


@pytest.fixture
def governor(tmp_path: Path, signer: Signer) -> Iterator[Registrar]:
    """A governor whose policy was pushed as bundle 1."""
    opened = begin(tmp_path)
    opened.bundles.push(signer.bundle(POLICIES, 1), "operator:test")
    yield opened
    opened.close()


def loads(home: Path) -> list[AuditEvent]:
    return [e for e in facts(home) if e.action == AuditAction.POLICY_LOAD]


def not_compiling(signer: Signer) -> bytes:
    return signer.bundle(POLICIES, 2, replaced={"admission.rego": b"package sovereign.admission\ndecision := {"})


def without_checks(signer: Signer) -> bytes:
    rule = b'package sovereign.admission\nimport rego.v1\ndecision := {"allow": true, "checks": {}, "failures": {}}'
    return signer.bundle(POLICIES, 2, replaced={"admission.rego": rule})


def allowing_all(signer: Signer) -> bytes:
    names = ("action_known", "scope_held", "same_tenant", "tenant_active")
    checks = ", ".join(f'"{name}": true' for name in names)
    rule = (
        "package sovereign.invocation\nimport rego.v1\n"
        f'decision := {{"allow": true, "checks": {{{checks}}}, "failures": {{}}, "obligations": [], "tools": []}}'
    )
    return signer.bundle(POLICIES, 2, replaced={"invocation.rego": rule.encode()})


def tampered(signer: Signer) -> bytes:
    return signer.bundle(POLICIES, 2).replace(b"allow", b"wolla", 1)


def unsigned(signer: Signer) -> bytes:
    read = BundleArtefact.from_bytes(signer.bundle(POLICIES, 2))
    return BundleArtefact(read.manifest, read.files).to_bytes()


def of_a_stranger(signer: Signer) -> bytes:
    read = BundleArtefact.from_bytes(signer.bundle(POLICIES, 2))
    return type(signer.key)(Ed25519PrivateKey.generate()).sign(read).to_bytes()


REFUSED: dict[str, tuple[Callable[[Signer], bytes], str]] = {
    "empty": (lambda _: b"", "empty"),
    "no rules": (lambda s: s.signed({"data/manifest.yaml": b'revision: "1"'}, 2), "no policy"),
    "unsigned": (unsigned, "not signed"),
    "of a stranger": (of_a_stranger, "not pinned"),
    "tampered": (tampered, "not the file"),
    "the same number": (lambda s: s.bundle(POLICIES, 1), "not greater than 1"),
    "another revision": (lambda s: s.bundle(POLICIES, 2, revision="other"), "revision other"),
    "not compiling": (not_compiling, "compiled"),
    "data of another form": (lambda s: s.bundle(POLICIES, 2, replaced={"data/plans.yaml": b"a: 1"}), "policy data"),
    "without checks": (without_checks, "on trial"),
    "allowing all": (allowing_all, "allows what names nobody"),
}


def test_threat_29_a_bundle_that_is_not_good_changes_nothing(tmp_path: Path, governor: Registrar, signer: Signer) -> None:
    """It is refused with its reason and one fact, and the last good policy goes on to decide."""
    before = governor.policy_status()
    for count, (make, why) in enumerate(REFUSED.values(), 1):
        with pytest.raises(BundleRefusedError, match=why):
            governor.bundles.push(make(signer), "operator:mallory")
        assert governor.policy_status() == before, why
        event = loads(tmp_path)[-1]
        assert (event.outcome, event.actor) == (AuditOutcome.DENIED, "operator:mallory"), why
        assert [e.outcome.value for e in loads(tmp_path)] == ["allowed", "done"] + ["denied"] * count, why
    assert governor.register(principal(), request("a", MARKET)).created
    assert governor.bundles.list()["in_force"] == 1


def test_threat_29_a_roll_back_is_refused_also_by_a_later_governor(tmp_path: Path, governor: Registrar, signer: Signer) -> None:
    """The last number is kept in the store: an old bundle, signed as it is, comes back only under a new number."""
    old = signer.bundle(POLICIES, 4)
    governor.bundles.push(old, "operator:test")
    governor.bundles.push(signer.bundle(POLICIES, 9), "operator:test")
    governor.close()
    later = begin(tmp_path)
    try:
        with pytest.raises(BundleRefusedError, match="4 is not greater than 9"):
            later.bundles.push(old, "operator:test")
        files = dict(BundleArtefact.from_bytes(old).files)
        assert later.bundles.push(signer.signed(files, 10), "operator:test").number == 10
        assert [b["number"] for b in later.bundles.list()["bundles"]] == [10, 9, 4, 1]
    finally:
        later.close()


def test_a_push_is_written_down_before_its_effect(tmp_path: Path, governor: Registrar, signer: Signer, strict: Path) -> None:
    """Who brought which bundle, signed by whom, in place of which; then it decides, and decisions say so."""
    accepted = governor.bundles.push(signer.bundle(strict, 2), "operator:ada")
    allowed, done = loads(tmp_path)[-2:]
    assert (allowed.outcome, done.outcome, allowed.actor) == (AuditOutcome.ALLOWED, AuditOutcome.DONE, "operator:ada")
    assert allowed.detail == done.detail
    wanted = {"number": 2, "digest": accepted.digest, "key_id": signer.key.key_id, "before": 1}
    assert wanted.items() <= allowed.detail.items()
    with pytest.raises(AdmissionDeniedError):
        governor.register(principal(), request("a", MARKET))
    decision = facts(tmp_path)[-1]
    assert (decision.detail["digest"], decision.detail["revision"]) == (accepted.digest, accepted.revision)
    assert len(decision.detail["input_digest"]) == 64


class FullJournal:
    """A journal that takes no fact of a policy."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self.sync, self.close = journal.sync, journal.close

    def append(self, fact: Fact) -> int:
        if fact.body["action"] == AuditAction.POLICY_LOAD:
            raise StorageError("The disk is full.")
        return self._journal.append(fact)


def test_a_push_that_cannot_be_recorded_does_not_happen(tmp_path: Path, signer: Signer, strict: Path) -> None:
    """Nothing comes into force off the record, in this process or in the store."""
    store = open_store(tmp_path)
    epoch = register_journal(store, WRITER_ID, "test")
    governor = begin(tmp_path, store=store, epoch=epoch, sink=FullJournal(JournalWriter(tmp_path / "journal", WRITER_ID, epoch)))
    before = governor.policy_status()
    with pytest.raises(StorageError):
        governor.bundles.push(signer.bundle(strict, 1), "operator:test")
    assert governor.policy_status() == before
    assert store.get(ACCEPTED) is None
    governor.close()


def test_every_decision_sees_one_bundle_whole(tmp_path: Path, governor: Registrar, signer: Signer, strict: Path) -> None:
    """While bundles are swapped, each of many threads' decisions is the one of the revision that it names."""
    governor.register(principal(), request("a", MARKET))
    sides = {"loose": (POLICIES, True), "strict": (strict, False)}
    digests: dict[str, bool] = {governor.policy_status()["digest"]: True}
    over, failures, seen = threading.Event(), [], set()

    def ask() -> None:
        while not over.is_set():
            decision = governor.check_activation(DEFAULT, A)
            seen.add(decision.digest)
            if decision.allow is not digests[decision.digest]:
                failures.append(decision)

    digests[governor.bundles._opener.open(signer.bundle(strict, 99)).tried.bundle.digest] = False
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, soak(8, 100)):
        folder, _ = sides["strict" if number % 2 == 0 else "loose"]
        governor.bundles.push(signer.bundle(folder, number), "operator:test")
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == digests.keys()


def test_threat_30_a_wake_is_decided_by_the_policy_of_that_moment(governor: Registrar, signer: Signer, strict: Path) -> None:
    """Registered under one bundle, called under a stricter one: it does not start, and is told which checks failed."""
    governor.register(principal(), request("a", MARKET))
    accepted = governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    with pytest.raises(AdmissionDeniedError) as refused:
        governor.begin_start(DEFAULT, A)
    assert [e.field for e in refused.value.errors] == ["capability_allowed"]
    assert governor.get(DEFAULT, A).state is AgentState.PASSIVE
    assert governor.check_activation(DEFAULT, A).digest == accepted.digest


class At:
    """A store or journal of a governor that does something once, at the moment that a test is about."""

    def __init__(self) -> None:
        self.act: Callable[[], object] | None = None

    def now(self) -> None:
        if self.act is not None:
            act, self.act = self.act, None
            act()


class WatchedJournal(At):
    def __init__(self, journal: JournalWriter, *actions: AuditAction) -> None:
        super().__init__()
        self._journal, self._actions = journal, actions
        self.sync, self.close = journal.sync, journal.close

    def append(self, fact: Fact) -> int:
        written = self._journal.append(fact)
        if fact.body["action"] in self._actions and fact.body["outcome"] == AuditOutcome.ALLOWED:
            self.now()
        return written


class WatchedStore(At):
    """Does it when everything of a transaction that makes or changes an agent was read, just before it is committed."""

    def __init__(self, store: Coordination) -> None:
        super().__init__()
        self._store = store
        self.get, self.children, self.close = store.get, store.children, store.close

    def transact(self, ops: Sequence[Op]) -> None:
        if any("/agents/" in op.path for op in ops):
            self.now()
        self._store.transact(ops)


@pytest.fixture(params=["after the decision", "before the commit"])
def watched(request: pytest.FixtureRequest, tmp_path: Path, signer: Signer) -> Iterator[tuple[Registrar, At]]:
    """A governor, and where a test can step in between its decision and its transaction."""
    store = WatchedStore(open_store(tmp_path))
    epoch = register_journal(store, WRITER_ID, "test")
    journal = JournalWriter(tmp_path / "journal", WRITER_ID, epoch)
    sink = WatchedJournal(journal, AuditAction.ADMISSION_DECIDE, AuditAction.LIFECYCLE_TRANSITION)
    governor = begin(tmp_path, store=store, sink=sink, epoch=epoch)
    governor.bundles.push(signer.bundle(POLICIES, 1), "operator:test")
    yield governor, sink if request.param == "after the decision" else store
    governor.close()


def test_threat_30_a_policy_that_changes_before_the_commit_decides_again(
    tmp_path: Path, watched: tuple[Registrar, At], signer: Signer, strict: Path
) -> None:
    """A registration that the old bundle allowed is refused by the new one: no row, no quota, and the first decision is void."""
    governor, at = watched
    at.act = lambda: governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    with pytest.raises(AdmissionDeniedError):
        governor.register(principal(), request("a", MARKET))
    assert at.act is None
    assert assert_whole(tmp_path, governor) == []
    said = [(e.outcome.value, e.reason) for e in facts(tmp_path) if e.action.startswith("admission:")]
    assert said == [("allowed", None), ("void", "policy_changed"), ("denied", None)]


def test_threat_30_what_the_new_policy_allows_too_stands_on_its_decision(
    tmp_path: Path, watched: tuple[Registrar, At], signer: Signer, strict: Path
) -> None:
    """The row carries the digest of the bundle that was in force when it was written."""
    governor, at = watched
    at.act = lambda: governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    record = governor.register(principal(), request("a", "conversation")).record
    assert record.policy_digest == governor.policy_status()["digest"] == governor.bundles.list()["bundles"][0]["digest"]
    assert assert_whole(tmp_path, governor) == ["a"]


def test_threat_30_a_start_that_was_decided_before_the_change_does_not_happen(
    tmp_path: Path, watched: tuple[Registrar, At], signer: Signer, strict: Path
) -> None:
    """Between the decision to wake and its transaction a stricter bundle comes: the agent stays passive, under no generation."""
    governor, at = watched
    governor.register(principal(), request("a", MARKET))
    at.act = lambda: governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    with pytest.raises(AdmissionDeniedError):
        governor.begin_start(DEFAULT, A)
    assert at.act is None
    record = governor.get(DEFAULT, A)
    assert (record.state, record.generation, record.lives) == (AgentState.PASSIVE, 0, ())
    wakes = [e.outcome.value for e in facts(tmp_path) if e.action == AuditAction.LIFECYCLE_TRANSITION]
    assert wakes == ["allowed", "void", "denied"]


def test_threat_30_a_process_that_comes_up_under_another_policy_is_asked_about_again(
    tmp_path: Path, governor: Registrar, signer: Signer, strict: Path
) -> None:
    """Begun under one bundle and live under a stricter one: it may not stay; under the same one nothing is asked."""
    governor.register(principal(), request("a", MARKET))
    _, generation = governor.begin_start(DEFAULT, A)
    governor.mark_live(DEFAULT, A, generation, "h:1")
    count = len(facts(tmp_path))
    assert governor.may_stay(DEFAULT, A, generation)
    assert len(facts(tmp_path)) == count
    governor.mark_passive(DEFAULT, A, generation, "lost")

    _, generation = governor.begin_start(DEFAULT, A)
    governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    governor.mark_live(DEFAULT, A, generation, "h:1")
    assert not governor.may_stay(DEFAULT, A, generation)
    last = facts(tmp_path)[-1]
    assert (last.outcome, last.reason) == (AuditOutcome.DENIED, "the policy changed while it started")


def test_a_policy_that_keeps_changing_ends_in_an_answer(watched: tuple[Registrar, At], signer: Signer, strict: Path) -> None:
    """A decision is made again a few times, and then the caller is told to try again; nothing was done."""
    governor, at = watched
    number = iter(range(2, 100))

    def push() -> None:
        n = next(number)
        governor.bundles.push(signer.bundle(strict if n % 2 == 0 else POLICIES, n), "operator:test")
        at.act = push

    at.act = push
    with pytest.raises(UnavailableError, match="too often"):
        governor.register(principal(), request("a", "conversation"))
    at.act = None
    assert governor.list(DEFAULT, "", 10) == []


def test_a_governor_that_missed_a_push_catches_up(tmp_path: Path, governor: Registrar, signer: Signer, strict: Path) -> None:
    """What the store says is in force decides, also where it was not swapped in: nothing is admitted by the policy before."""
    twin = begin(tmp_path, epoch=1, sink=JournalWriter(tmp_path / "twin", WRITER_ID, 1))
    twin.bundles.push(signer.bundle(strict, 2), "operator:test")
    with pytest.raises(AdmissionDeniedError):
        governor.register(principal(), request("a", MARKET))
    assert governor.policy_status() == twin.policy_status()
    twin.close()


def test_a_deposed_governor_puts_nothing_in_force(tmp_path: Path, governor: Registrar, signer: Signer, strict: Path) -> None:
    """The fence of the governors holds for policy too, and its decision to do it is void."""
    later = begin(tmp_path)
    with pytest.raises(DeposedError):
        governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    assert governor.policy_status()["number"] == 1
    assert [e.outcome.value for e in loads(tmp_path)][-2:] == ["allowed", "void"]
    later.close()


class DroppedAnswers(SqliteCoordination):
    """A store that does what it is told and does not say so, once a bundle is accepted."""

    def transact(self, ops: Sequence[Op]) -> None:
        super().transact(ops)
        if any(isinstance(op, Create) and op.path.startswith("/policy/bundles/") for op in ops):
            raise UnavailableError("It did not answer.")


def test_a_store_that_does_not_say_whether_it_wrote_is_asked(tmp_path: Path, signer: Signer, strict: Path) -> None:
    """What was accepted decides, whether or not the store's answer arrived."""
    governor = begin(tmp_path, store=DroppedAnswers(tmp_path / "coordination.sqlite"))
    accepted = governor.bundles.push(signer.bundle(strict, 1), "operator:test")
    assert governor.policy_status()["digest"] == accepted.digest
    governor.close()


def test_the_files_of_a_bundle_are_those_that_its_digest_is_of(signer: Signer) -> None:
    """What a folder decides and what its bundle decides go by one digest."""
    read = BundleArtefact.from_bytes(signer.bundle(POLICIES, 1))
    assert dict(read.files) == read_policies(POLICIES)


def test_threat_30_a_change_that_was_decided_before_the_policy_changed_does_not_happen(
    tmp_path: Path, watched: tuple[Registrar, At], signer: Signer, strict: Path
) -> None:
    """What an agent is changed to is decided again too: it keeps the spec that it had."""
    governor, at = watched
    before = governor.register(principal(), request("a", "conversation")).record
    at.act = lambda: governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    with pytest.raises(AdmissionDeniedError):
        governor.change(principal(), request("a", MARKET))
    assert at.act is None
    assert governor.get(DEFAULT, A).spec == before.spec


def test_threat_30_a_gang_that_was_decided_before_the_policy_changed_does_not_come_to_be(
    tmp_path: Path, watched: tuple[Registrar, At], signer: Signer, strict: Path
) -> None:
    """All or none also here: the member that the new policy refuses keeps the other one out."""
    governor, at = watched
    at.act = lambda: governor.bundles.push(signer.bundle(strict, 2), "operator:test")
    policy = {"resource_limits": {"cpu": "100m", "memory": "64Mi"}}
    members = [
        {"agent_id": agent, "capabilities": [capability], "security_policy": policy}
        for agent, capability in (("a", "conversation"), ("b", MARKET))
    ]
    with pytest.raises(AdmissionDeniedError):
        governor.register_gang(principal(), parse_gang({"gang_id": "crew", "agents": members}))
    assert at.act is None
    assert assert_whole(tmp_path, governor) == []
    assert not governor.gangs()


@pytest.mark.parametrize("how", ["alone", "changed", "in a gang"])
def test_threat_30_a_policy_that_changes_before_the_decision_completes_the_spec_anew(
    tmp_path: Path, governor: Registrar, signer: Signer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """No agent stands on the decision of a policy with the defaults of the one before it."""
    later = changed_policies(tmp_path, "plans.yaml", {f"{plan_of_default()}.defaults.max_iterations": 7})
    if how == "changed":
        governor.register(principal(), request("a", "conversation"))
    at, decisions = At(), governor._decisions
    at.act = lambda: governor.bundles.push(signer.bundle(later, 2), "operator:test")
    complete = decisions.spec

    def completed(tenant: str, asked: RegistrationRequest) -> AgentSpec:
        spec = complete(tenant, asked)
        at.now()
        return spec

    monkeypatch.setattr(decisions, "spec", completed)
    if how == "alone":
        governor.register(principal(), request("a", "conversation"))
    elif how == "changed":
        governor.change(principal(), request("a", MARKET))
    else:
        policy = {"resource_limits": {"cpu": "100m", "memory": "64Mi"}}
        members = [{"agent_id": a, "capabilities": ["conversation"], "security_policy": policy} for a in ("a", "b")]
        governor.register_gang(principal(), parse_gang({"gang_id": "crew", "agents": members}))
    assert at.act is None
    record = governor.get(DEFAULT, A)
    assert record.policy_digest == governor.policy_status()["digest"]
    assert record.spec.max_iterations == 7
