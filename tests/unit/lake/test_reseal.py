"""A batch that an earlier life sealed and did not store, when a journal of it is broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.journal.audit_event import AuditAction
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.journal.writer import JournalWriter
from tests.lake_batch import (
    FIRST_KEYS,
    A,
    B,
    check_only_a_is_broken,
    damage,
    denied,
    refusals,
    remove,
    rewrite,
    sealed_not_stored,
    usage_of,
)
from tests.lake_node import Node
from tests.lake_samples import admitted, call_fact, final, make_calls, usage_fact


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(("breaks", "good"), [(remove, 0), (damage, 3), (rewrite, 0)])
def test_one_broken_journal_keeps_no_other_out_of_the_lake(node: Node, breaks: Callable[[Node], None], good: int) -> None:
    """Control: reseal. Whole journals ship once, under the planned keys; the broken one up to its break, and an alarm."""
    sealed_not_stored(node)
    breaks(node)
    with node.shipper() as shipper:
        report = shipper.step()
        assert (report.broken_journals, report.conflicts, report.store_error) == (1, 0, "")
        assert shipper.step().broken_journals == 0
    with node.shipper() as shipper:
        assert shipper.step().broken_journals == 0
    assert refusals(node) == {"a": good, "b": 5} if good else {"b": 5}
    assert usage_of(node) == {B.writer_id: 2}
    assert FIRST_KEYS[0] in [o.key for o in node.store.list("audit/raw/")]
    assert FIRST_KEYS[1] in [o.key for o in node.store.list("usage/raw/")]
    check_only_a_is_broken(node)
    (alarm,) = node.audits(AuditAction.JOURNAL_BROKEN)
    detail = {"last_good_seq": good, "sealed_seq": 9, "segments": sorted(FIRST_KEYS, reverse=True)}
    assert json.loads(alarm["detail_json"]) == detail


def test_what_was_covered_stays_covered_when_all_rows_of_a_stream_were_in_the_broken_journal(node: Node) -> None:
    """Control: even_empty in reseal. The whole journal's next segment of that stream begins where the planned one would end."""
    with node.agent(writer_id=A.writer_id) as agent:
        make_calls(agent, 2)
    with node.agent(writer_id=B.writer_id) as agent:
        agent.append_many([denied(node, "b") for _ in range(5)])
        node.store.away = True
        with node.shipper() as shipper:
            shipper.step()
        node.store.away = False
        remove(node)
        with node.shipper() as shipper:
            assert (shipper.step().broken_journals, node.rows()) == (1, [])
            make_calls(agent, 1)
            assert shipper.step().usage_rows == 1
    assert refusals(node) == {"b": 5}
    check_only_a_is_broken(node)


def test_a_call_that_a_broken_journal_no_longer_ends_is_lost(node: Node) -> None:
    """Control: the low position in reseal. Its end was in the part that is not taken any more, its beginning before the batch."""
    with node.agent(writer_id=A.writer_id) as agent:
        early, late = admitted(), admitted()
        agent.append(call_fact(early))
        agent.append(denied(node, "a"))
        with node.shipper() as shipper:
            assert shipper.step().audit_rows == 1
        agent.append(call_fact(late))
        agent.append_many([usage_fact(final(early)), usage_fact(final(late))])
        node.store.away = True
        with node.shipper() as shipper:
            shipper.step()
    damage(node)
    node.store.away = False
    with node.shipper() as shipper:
        assert shipper.step().lost_events == 2
    assert {r["invocation_id"] for r in node.rows() if r["kind"] == "lost"} == {early.invocation_id, late.invocation_id}
    node.check()


def test_a_broken_journal_is_never_removed(node: Node) -> None:
    """Control: Shipper._remove_old. Its facts may be nowhere else; whole ones go a day after their end, also in a later life."""
    sealed_not_stored(node)
    damage(node)
    whole = {p: p.read_bytes() for p in A.folder(node.journals).glob("*.seg")}
    with node.shipper() as shipper:
        shipper.step()
    for _ in range(2):
        with node.shipper("n2") as shipper:
            node.clock.advance(2 * 86_400_000_000)
            shipper.step()
    assert {p: p.read_bytes() for p in A.folder(node.journals).glob("*.seg")} == whole
    assert list(B.folder(node.journals).glob("*.seg")) == []
    # Nor is it taken up again when it is put away and back.
    away = node.journals.parent / "away"
    A.folder(node.journals).rename(away)
    node.shipper("n2").close()
    away.rename(A.folder(node.journals))
    with node.shipper("n2") as shipper:
        assert (shipper.step().broken_journals, refusals(node)) == (0, {"a": 3, "b": 5})


def test_what_an_earlier_try_stored_is_the_truth(node: Node) -> None:
    """Control: Intent.earlier. The usage object was stored, its answer lost: it stays, with the broken journal's rows, once."""
    sealed_not_stored(node)
    node.store.lose_answers = True
    with node.shipper() as shipper:
        assert shipper.step().store_error
    node.store.lose_answers = False
    assert node.store.get(FIRST_KEYS[1])
    remove(node)
    with node.shipper() as shipper:
        report = shipper.step()
        assert (report.broken_journals, report.conflicts) == (1, 0)
    assert usage_of(node) == {A.writer_id: 2, B.writer_id: 2}
    assert refusals(node) == {"b": 5}
    check_only_a_is_broken(node)


@pytest.mark.parametrize("arrives", ["the first", "the second"])
def test_one_of_several_plans_is_stored_whichever_put_arrives(node: Node, arrives: str) -> None:
    """Control: a new plan has the old one's keys and knows its digests.

    The first PUT may arrive late, when a second plan is made; or the second is stored and its answer lost. Then another
    journal breaks, and a third plan is made.
    """
    sealed_not_stored(node)
    node.store.lose_answers = True
    with node.shipper() as shipper:
        shipper.step()
    first = node.store.get(FIRST_KEYS[1])
    (node.store.root / FIRST_KEYS[1]).unlink()
    remove(node)
    node.store.away = arrives == "the first"
    with node.shipper() as shipper:
        assert shipper.step().broken_journals == 1
    node.store.away = node.store.lose_answers = False
    if arrives == "the first":
        (node.store.root / FIRST_KEYS[1]).write_bytes(first)
    damage(node, B, good=7)
    with node.shipper() as shipper:
        report = shipper.step()
        assert (report.broken_journals, report.conflicts) == (1, 0)
    assert usage_of(node) == ({A.writer_id: 2, B.writer_id: 2} if arrives == "the first" else {B.writer_id: 2})
    assert refusals(node) == {"b": 5}
    assert {r["object_id"] for r in node.audits(AuditAction.JOURNAL_BROKEN)} == {str(A), str(B)}
    node.check()


def test_a_new_plan_is_on_disk_before_its_first_put(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the sync in Outbox._replan. Else a power cut could leave an object in the store that no plan speaks of."""
    sealed_not_stored(node)
    remove(node)
    synced: list[Path] = []
    real = os.fdatasync
    with node.shipper(sync_ms=60_000) as shipper:
        monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), real(fd))[1])
        node.store.away = True
        assert shipper.step().store_error
        assert [p.parent for p in synced] == [node.journals / "shipper.n1" / "e2"]
    # And it is a plan like any other: a later life finds it whole, and writes nothing but its checkpoint.
    with node.shipper("n3"):
        pass
    with node.shipper("n4") as shipper:
        assert shipper.step(seal=False).store_error
    reader = JournalReader(node.journals, JournalId("shipper.n4", 1))
    assert [f.body["op"] for _, f in reader.read()] == ["checkpoint"]


def test_a_journal_that_was_read_up_to_the_start_of_a_segment_is_not_broken(node: Node) -> None:
    """Control: source._is_at. The end of a full segment and the start of the next are one place; the writer was just between."""
    with JournalWriter(node.journals, A.writer_id, 1, clock=node.clock) as agent:
        call = admitted()
        agent.append(call_fact(call))
        agent.append(denied(node, "a"))
        agent._rotate()
        with node.shipper() as shipper:
            shipper.step()
        agent.append(usage_fact(final(call)))
        with node.shipper() as shipper:
            assert shipper.step().broken_journals == 0
    assert usage_of(node) == {A.writer_id: 1}


def test_what_a_sealed_batch_holds_of_a_broken_journal_waits_until_it_is_stored(node: Node) -> None:
    """Control: the reads of pending intents in `waiting_bytes`. No more is taken of the journal; these count for the limit."""
    sealed_not_stored(node)
    damage(node, A, good=3)
    node.store.away = True
    with node.shipper() as shipper:
        report = shipper.step()
        assert (report.broken_journals, bool(report.store_error)) == (1, True)
        whole = [B, JournalId("shipper.n1", 1)]
        expected = sum(p.stat().st_size for journal in whole for p in journal.folder(node.journals).glob("*.seg"))
        good = JournalReader(node.journals, A)
        good.read(3)
        assert report.backlog_bytes == expected + good.position.offset
        node.store.away = False
        node.clock.advance(60_000_000)
        assert shipper.step().backlog_bytes == 0
