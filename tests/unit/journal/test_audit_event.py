"""Audit events."""

from __future__ import annotations

import json

import pytest

from cluster.clock import FakeClock
from cluster.errors import IntegrityError
from cluster.journal.audit_event import MAX_TEXT, AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream, decode_fact
from cluster.lake.schema import AUDIT, SEALED_COLUMNS


def event(**changes: object) -> AuditEvent:
    values: dict[str, object] = {"actor": "governance", "tenant_id": "acme", "detail": {"checks": ["capability"], "ä": 1}}
    return AuditEvent.new(FakeClock(5), AuditAction.ADMISSION_DECIDE, "denied", **(values | changes))  # type: ignore[arg-type]  # test values


def test_an_event_reads_back_as_it_was_written() -> None:
    """Through a fact's bytes; its detail is JSON text on the way."""
    e = event()
    body = decode_fact(Fact(Stream.AUDIT, e.to_body()).encode()).body
    assert AuditEvent.from_body(body) == e
    assert json.loads(body["detail_json"]) == e.detail
    assert (e.event_time, e.outcome) == (5, AuditOutcome.DENIED)
    assert set(body) == set(AUDIT.names) - set(SEALED_COLUMNS)


def test_actions_are_scope_resource_action() -> None:
    """Every one of ours, and any that a caller brings."""
    assert all(len(a.split(":")) == 3 for a in AuditAction)
    with pytest.raises(ValueError, match="scope:resource:action"):
        AuditEvent.new(FakeClock(), "deleted", "done", actor="x")


def test_text_from_outside_cannot_block_or_fill_the_log() -> None:
    """Lone surrogates are escaped and long texts cut, because a refusal must always be recordable."""
    e = event(reason="bad \ud800 name", object_id="x" * 100_000)
    assert e.reason == "bad \\ud800 name"
    assert e.object_id == "x" * MAX_TEXT
    Fact(Stream.AUDIT, event(detail={"name": "\ud800"}).to_body()).encode()


@pytest.mark.parametrize(
    "change", [{"outcome": "maybe"}, {"event_time": -1}, {"detail_json": "{"}, {"actor": None}, {"reason": 7}]
)
def test_a_wrong_field_is_named(change: dict[str, object]) -> None:
    """A body that is no event is refused with the field's name."""
    with pytest.raises(IntegrityError) as e:
        AuditEvent.from_body(event().to_body() | change)
    assert [x.field for x in e.value.errors] == list(change)
