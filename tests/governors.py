"""Governors for the tests: real policies, journal and coordination in one folder, and what must hold over all of them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.bundle_keys import KeyRing
from cluster.admission.bundle_opener import BundleOpener
from cluster.admission.bundle_shelf import BundleShelf
from cluster.admission.decision_journal import FactSink
from cluster.admission.policy_engine import PolicyEngine
from cluster.admission.policy_in_force import Policy, PolicyInForce
from cluster.admission.registrar import WRITER_ID, Registrar
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.agents.budget import NO_BUDGET
from cluster.agents.holding import NOTHING
from cluster.agents.registration import RegistrationRequest, parse_registration
from cluster.clock import SystemClock
from cluster.coordination.coordination import Coordination
from cluster.coordination.journals import register_journal
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Stream
from cluster.journal.journal_id import list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.writer import JournalWriter
from cluster.settings import PROJECT_ROOT

POLICIES = PROJECT_ROOT / "policies"
_STARTED: dict[str, PolicyEngine] = {}
DEFAULT, TRIAL = TenantId("default"), TenantId("trial")


def principal(tenant: TenantId = DEFAULT, scopes: frozenset[Scope] = frozenset(Scope)) -> Principal:
    return Principal(tenant, ProjectId("default"), "key:test", scopes)


def request(agent_id: str, *capabilities: str, cpu: str = "100m", memory: str = "64Mi", **more: Any) -> RegistrationRequest:
    policy = {"resource_limits": {"cpu": cpu, "memory": memory}} | more.pop("security_policy", {})
    body = {"agent_id": agent_id, "capabilities": list(capabilities) or ["conversation"], "security_policy": policy}
    return parse_registration(body | more)


def changed_policies(folder: Path, file: str, change: dict[str, Any]) -> Path:
    """Return a copy of the policies in which the entries of `change` replace those of one data file."""
    copy = folder / "policies"
    if not copy.exists():
        shutil.copytree(POLICIES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "data" / file
    data = yaml.safe_load(path.read_text())
    for dotted, value in change.items():
        *folders, last = dotted.split(".")
        place = data
        for name in folders:
            place = place[name]
        place[last] = value
    path.write_text(yaml.safe_dump(data))
    return copy


def started(bundle: PolicyBundle) -> PolicyEngine:
    """Return the engine of a bundle, started once for all tests."""
    if bundle.digest not in _STARTED:
        _STARTED[bundle.digest] = RegorusPolicyEngine(bundle)
    return _STARTED[bundle.digest]


def open_store(home: Path) -> SqliteCoordination:
    return SqliteCoordination(home / "coordination.sqlite")


def begin(
    home: Path,
    *,
    policies: Path = POLICIES,
    store: Coordination | None = None,
    sink: FactSink | None = None,
    engine: PolicyEngine | None = None,
    epoch: int = 0,
) -> Registrar:
    """Return a governor over `home`: a new one, or beside others of the same `epoch` when one is given with its sink."""
    store = store or open_store(home)
    bundle = load_bundle(policies)
    epoch = epoch or register_journal(store, WRITER_ID, "test")
    return Registrar(
        store,
        PolicyInForce(Policy(bundle, engine or started(bundle))),
        sink or JournalWriter(home / "journal", WRITER_ID, epoch),
        opener=BundleOpener(lambda: KeyRing.load(home / "keys"), started),
        shelf=BundleShelf(home / "bundles"),
        clock=SystemClock(),
        epoch=epoch,
        node="test",
        journal_dir=home / "journal",
    )


def facts(home: Path) -> list[AuditEvent]:
    """Every audit fact of every journal below `home`, in order of writer, epoch and number."""
    found = []
    for journal in list_journals(home / "journal"):
        reader = JournalReader(home / "journal", journal)
        while read := reader.read():
            found += [AuditEvent.from_body(f.body) for _, f in read if f.stream is Stream.AUDIT]
    return found


def assert_whole(home: Path, registrar: Registrar, tenant: TenantId = DEFAULT) -> list[str]:
    """Check what is held and reserved against rows, rows against decisions, those against outcomes; return the agents' ids."""
    records = registrar.list(tenant, "", 10_000)
    held, reserved = NOTHING, NO_BUDGET
    for record in records:
        held += record.holding
        reserved += record.spec.budget
    quota, budget = registrar.quota(tenant), registrar.budget(tenant)
    assert {name: use["used"] for name, use in quota.items()} == held.to_json()
    assert all(use["used"] <= use["limit"] for use in quota.values())
    assert {unit: use["reserved"] for unit, use in budget.items()} == reserved.to_json()
    assert all(use["limit"] is None or use["reserved"] + use["settled"] <= use["limit"] for use in budget.values())
    # One reservation for each row that has a budget, under the decision that the row stands on.
    rows = {(r.decision_id, str(r.spec.agent_id), r.spec.budget) for r in records if r.spec.budget}
    assert len(registrar.reservations(tenant)) == len(rows)
    assert set(registrar.reservations(tenant)) == rows

    events = facts(home)
    allowed = {e.decision_id for e in events if e.action == AuditAction.ADMISSION_DECIDE and e.outcome is AuditOutcome.ALLOWED}
    outcomes = [e for e in events if e.action == AuditAction.ADMISSION_OUTCOME]
    assert {r.decision_id for r in records} <= allowed
    assert {e.decision_id for e in outcomes} == allowed
    done = Counter(e.decision_id for e in outcomes if e.outcome is AuditOutcome.DONE)
    void = {e.decision_id for e in outcomes if e.outcome is AuditOutcome.VOID}
    assert set(done.values()) <= {1}
    assert not void & done.keys()
    assert {r.decision_id for r in records} <= done.keys()
    return [str(r.spec.agent_id) for r in records]
