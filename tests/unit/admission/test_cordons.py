"""Which nodes take no agents outlives the governor, is on the record, and changes by the last governor alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import wiring
from cluster.admission.registrar import WRITER_ID, Registrar
from cluster.admission.registry import DeposedError
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path)


@pytest.fixture
def registrar(settings: Settings) -> Iterator[Registrar]:
    wiring.sign_policies(settings)
    opened = wiring.build_registrar(settings)
    yield opened
    opened.close()


def test_a_cordon_stays_until_it_is_lifted(settings: Settings, registrar: Registrar) -> None:
    """Twice is once, and a later governor finds it."""
    for _ in range(2):
        registrar.cordons.put("w1", "operator:test")
    registrar.cordons.put("w2", "operator:test")
    registrar.cordons.lift("w2", "operator:test")
    registrar.cordons.lift("w2", "operator:test")
    later = wiring.build_registrar(settings)
    assert later.cordons.all() == {"w1"}
    later.close()


def test_each_change_is_decided_on_the_record_before_it_is_made(settings: Settings, registrar: Registrar) -> None:
    """Who did it is named; the effect follows the decision."""
    registrar.cordons.put("w1", "operator:test")
    reader = JournalReader(settings.journal_dir, JournalId(WRITER_ID, 1))
    events = [AuditEvent.from_body(fact.body) for _, fact in reader.read()]
    events = [e for e in events if e.action != AuditAction.POLICY_LOAD]
    assert [(e.action, e.outcome.value, e.object_id, e.actor) for e in events] == [
        ("cluster:node:drain", "allowed", "w1", "operator:test"),
        ("cluster:node:drain", "done", "w1", "operator:test"),
    ]


def test_a_deposed_governor_changes_nothing(settings: Settings, registrar: Registrar) -> None:
    """The fence holds for nodes as it does for agents."""
    later = wiring.build_registrar(settings)
    with pytest.raises(DeposedError):
        registrar.cordons.put("w1", "operator:test")
    assert later.cordons.all() == frozenset()
    later.close()
