"""Usage events, and the loss of a call that never ended."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

from cluster.errors import IntegrityError
from cluster.identity.ids import uuid7, uuid7_time_us
from cluster.journal.fact import decode_fact
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind, lost_event, lost_event_id
from cluster.lake.schema import SEALED_COLUMNS, USAGE
from tests.lake_samples import admitted, call_fact, final, usage_fact


def test_an_event_reads_back_as_it_was_written() -> None:
    """Through a fact's bytes, with every field, its kinds as kinds."""
    event = final(trace_id="t" * 32, provider_usage_raw='{"total": 3}', outcome=Outcome.LIMIT, kind=UsageKind.INTERIM)
    back = UsageEvent.from_body(decode_fact(usage_fact(event).encode()).body)
    assert back == event
    assert back.kind is UsageKind.INTERIM
    call = admitted(parent_invocation_id="p")
    assert CallAdmitted.from_body(decode_fact(call_fact(call).encode()).body) == call


def test_an_events_fields_are_the_columns_of_the_lake() -> None:
    """Nothing in one that is not in the other; what sealing sets is not in the body."""
    assert set(UsageEvent.__dataclass_fields__) == set(USAGE.names)
    assert set(final().to_body()) == set(USAGE.names) - set(SEALED_COLUMNS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens_output", -1),
        ("tokens_output", 1.5),
        ("tokens_output", True),
        ("tokens_output", 1 << 63),
        ("tool_calls", 1 << 31),
        ("kind", "guess"),
        ("outcome", None),
        ("event_id", 7),
        ("billable", 1),
        ("event_time", "now"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    """A body that is no event is refused with the field's name, never guessed at."""
    with pytest.raises(IntegrityError) as e:
        UsageEvent.from_body(final().to_body() | {field: value})
    assert [x.field for x in e.value.errors] == [field]


def test_missing_fields_are_named_and_unknown_ones_passed_over() -> None:
    """A newer release may add fields; none that is needed may be absent."""
    body = final().to_body() | {"added_later": 1}
    assert UsageEvent.from_body(body) == final(admitted(body["event_id"]))
    del body["tenant_id"], body["model"], body["queue_us"]
    with pytest.raises(IntegrityError) as e:
        UsageEvent.from_body(body)
    assert [x.field for x in e.value.errors] == ["tenant_id", "model"]


def test_a_lost_event_is_the_same_for_everyone() -> None:
    """Threat 59. Control: lost_event_id. Derived twice it is one row: a UUIDv7 of the same instant, not the call's own id."""
    call = admitted()
    lost = lost_event(call)
    assert lost == lost_event(CallAdmitted.from_body(call.to_body()))
    assert lost.event_id != call.event_id
    assert uuid.UUID(lost.event_id).version == 7
    assert uuid.UUID(lost.event_id).variant == uuid.RFC_4122
    assert uuid7_time_us(lost.event_id) == uuid7_time_us(call.event_id)
    assert (lost.kind, lost.outcome, lost.billable) == (UsageKind.LOST, Outcome.LOST, False)
    assert (lost.reservation_id, lost.tenant_id, lost.start_time) == (call.reservation_id, call.tenant_id, call.start_time)
    assert UsageEvent.from_body(lost.to_body()) == lost


def test_lost_ids_of_different_calls_differ() -> None:
    """Even when the calls began in the same millisecond."""
    ids = [uuid7() for _ in range(1_000)]
    assert len({lost_event_id(i) for i in ids}) == 1_000


@pytest.mark.parametrize("event_id", ["", "x", str(uuid.UUID(int=4 << 76 | 2 << 62))])
def test_a_lost_id_needs_a_uuid7(event_id: str) -> None:
    """Anything else has no time bits to keep."""
    with pytest.raises(ValueError):
        lost_event_id(event_id)


def test_writing_a_fact_does_not_import_arrow() -> None:
    """An agent's process pays neither its memory nor its start-up time."""
    modules = "cluster.journal.writer, cluster.journal.usage_event, cluster.journal.audit_event"
    code = f"import sys, {modules}; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
