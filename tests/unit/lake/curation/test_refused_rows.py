"""What is not curated, and why: other events under an id, clocks that jumped, what can't be billed, and losses that were none."""

from __future__ import annotations

import pytest

from cluster.journal.usage_event import UsageEvent, lost_event
from cluster.lake.curation.conservation import hourly
from cluster.lake.curation.verify_curated import verify_curated
from tests.lake_curation import DAY_US, MINUTE_US, QUARANTINE, Catalogue, CrashError, TrickyStore, curator, ids, reasons
from tests.lake_raw import INGEST_US, curated, event, put, segment, uuid7_at
from tests.lake_samples import START_US, admitted


@pytest.fixture
def store() -> TrickyStore:
    return TrickyStore()


def test_threat_72_another_event_under_an_id_is_kept_apart(store: TrickyStore) -> None:
    """Control: comparing payloads. The first wins, the other is a row in quarantine, and the report says so."""
    put(store, segment([event(1), event(1, tokens_output=99)], 1))
    curator(store).step()
    put(store, segment([event(1, tenant_id="other"), event(1)], 2))
    report = curator(store).step()
    assert (report.reasons, report.rows["duplicate"]) == ({"conflict": 1}, 1)
    assert [(r["tenant_id"], r["tokens_output"]) for r in curated(store)] == [("acme", 1)]
    held = curated(store, QUARANTINE)
    assert [(r["tenant_id"], r["tokens_output"]) for r in held] == [("acme", 99), ("other", 1)]
    assert [(r["segment"], r["segment_row"]) for r in held] == [(segment([], 1)[0], 1), (segment([], 2)[0], 0)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_time": INGEST_US + 5 * MINUTE_US + 1}, "clock_ahead"),
        ({"start_time": INGEST_US + 6 * MINUTE_US}, "clock_ahead"),
        ({"event_id": uuid7_at(INGEST_US + 6 * MINUTE_US, 7)}, "clock_ahead"),
        ({"event_time": START_US - 5 * MINUTE_US - 1}, "clock_back"),
        ({"event_time": 0}, "clock_back"),
        ({"event_time": INGEST_US + 5 * MINUTE_US}, None),
        ({"event_time": START_US - 5 * MINUTE_US}, None),
    ],
)
def test_threat_73_a_clock_that_jumped_puts_its_rows_in_quarantine(
    store: TrickyStore, changes: dict[str, object], reason: str | None
) -> None:
    """Control: screen. Five minutes are forgiven; beyond it the row waits for a look, and its neighbours do not."""
    put(store, segment([event(1), event(2, **changes)], 1))
    curator(store).step()
    assert list(reasons(store).values()) == ([reason] if reason else [])
    assert len(ids(store)) == (1 if reason else 2)


def test_threat_73_a_node_whose_clock_is_ahead_bills_nothing_in_the_future(store: TrickyStore) -> None:
    """Control: Plan.planned_us. Agent and shipper agree on a time that has not come yet: the planner's clock does not."""
    put(store, segment([event(1, start_us=START_US + DAY_US)], 1, ingest_us=INGEST_US + DAY_US))
    curator(store).step()
    assert list(reasons(store).values()) == ["clock_ahead"]


def wrong(name: str, value: object) -> UsageEvent:
    one = event(2)
    setattr(one, name, value)
    return one


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cpu_us", -1, "negative"),
        ("tool_calls", -1, "negative"),
        ("tokens_output", 2**53, "overflow"),
        ("mem_mib_ms", 2**63 - 1, "overflow"),
        ("tokens_output", 2**53 - 1, None),
        ("event_id", "no-id", "bad_id"),
        ("event_id", uuid7_at(START_US, 9).upper().replace("9", "A"), "bad_id"),
        ("event_id", "0b0e7c4e-2f6b-4c55-8a53-3c5d3b9e6d6f", "bad_id"),
        ("event_id", None, "incomplete"),
        ("tenant_id", None, "incomplete"),
        ("event_time", None, "incomplete"),
        ("tokens_output", None, "incomplete"),
        ("trace_id", None, None),
        ("tenant_id", "stranger", "unknown_tenant"),
        ("model", "new:model", "unknown_price"),
    ],
)
def test_what_cannot_be_billed_is_in_quarantine_with_its_reason(
    store: TrickyStore, name: str, value: object, reason: str | None
) -> None:
    """Control: screen. Never silently zero: the row is kept, named and counted; the one beside it is curated."""
    put(store, segment([event(1), wrong(name, value)], 1))
    report = curator(store, known=Catalogue()).step()
    assert [r["reason"] for r in curated(store, QUARANTINE)] == ([reason] if reason else [])
    assert report.rows["raw"] == report.rows["curated"] + report.rows.get("quarantined", 0) == 2
    assert hourly(store).unbalanced() == []
    assert verify_curated(store) == []


def test_who_was_known_is_said_by_the_plan_and_not_by_who_carries_it_out(store: TrickyStore) -> None:
    """Control: Plan.unknown_tenants. Another with newer knowledge makes the same rows; the event sent again is curated then."""
    put(store, segment([event(1, tenant_id="new")], 1))

    def crash(key: str) -> None:
        if key.startswith(QUARANTINE):
            raise CrashError

    store.before = crash
    with pytest.raises(CrashError):
        curator(store, known=Catalogue()).step()
    store.before = lambda key: None
    curator(store).step()
    assert reasons(store) == {event(1).event_id: "unknown_tenant"}
    put(store, segment([event(1, tenant_id="new")], 2))
    curator(store).step()
    assert ids(store) == [event(1).event_id]


def test_a_final_event_supersedes_the_loss_of_its_call(store: TrickyStore) -> None:
    """Control: lost_event_id. Before it, beside it, or after it: the figures say one settled call, and no lost one."""
    calls = [admitted(uuid7_at(START_US, n), start_time=START_US) for n in (1, 2, 3, 4)]
    put(store, segment([event(1), lost_event(calls[1]), event(2), lost_event(calls[2]), lost_event(calls[3])], 1))
    curator(store).step()
    put(store, segment([lost_event(calls[0]), event(3)], 2))
    curator(store).step()
    total = hourly(store).totals()
    assert (total["settled"], total["lost"] - total["revived"], total["superseded"]) == (3, 1, 2)
    assert total["raw"] == 7 == total["curated"] + total["superseded"]
