"""The shipper, step by step, over a real store in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigurationError, ConflictError, StorageError
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.usage_event import lost_event_id
from cluster.journal.writer import JournalWriter
from cluster.lake.backoff import LONGEST_S, Backoff
from tests.lake_node import Node
from tests.lake_samples import AGENT, admitted, call_fact, everything, final, make_calls, usage_fact


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_each_fact_is_shipped_once(node: Node) -> None:
    """Over many steps, batches and a change of shipper with another node id."""
    ids: list[str] = []
    with node.agent() as agent, node.agent(writer_id="gateway.r1ab2") as gateway:
        with node.shipper(max_rows=7) as shipper:
            for _ in range(3):
                ids += make_calls(agent, 5) + make_calls(gateway, 4)
                report = shipper.step()
                assert (report.usage_rows, report.store_error) == (9, "")
                assert report.segments > 1
            assert shipper.step().segments == 0
            ids += make_calls(agent, 2)
        with node.shipper("n2") as shipper:
            assert shipper.step().usage_rows == 2
            assert shipper.step().usage_rows == 0
    assert node.ids() == sorted(ids)
    node.check()


def test_keys_are_as_documented(node: Node) -> None:
    """Partition by day of ingest (UTC), the shipper as writer, its epoch and a number."""
    with node.agent() as agent, node.shipper() as shipper:
        make_calls(agent, 1)
        shipper.step()
        node.clock.advance(86_400_000_000)
        make_calls(agent, 1)
        shipper.step()
    assert [o.key for o in node.store.list("usage/")] == [
        "usage/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-00000001.parquet",
        "usage/raw/v1/ingest_date=2026-09-22/writer=shipper.n1/e1-00000002.parquet",
    ]


def test_a_sealed_batch_is_not_made_of_facts_that_a_power_cut_could_take(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals read and the intent are synced before the first PUT."""
    synced: list[str] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd))[1])
    with (
        JournalWriter(node.journals, AGENT, 1, clock=node.clock, sync_ms=60_000) as agent,
        node.shipper(sync_ms=60_000) as shipper,
    ):
        make_calls(agent, 1)
        synced.clear()
        node.store.away = True
        shipper.step()
        assert [Path(p).parent.parent.name for p in synced] == [AGENT, "shipper.n1"]


def test_a_store_that_is_away_drops_nothing(node: Node) -> None:
    """Threat 64. Facts wait in the journals and the backlog is seen; tries are spaced out; then all is shipped, once."""
    with node.agent() as agent, node.shipper(backoff=Backoff(jitter=lambda: 1.0)) as shipper:
        ids = make_calls(agent, 3)
        node.store.away = True
        report = shipper.step()
        assert "the store is away" in report.store_error
        assert (report.segments, report.retry_after_s) == (0, 0.25)
        tried = node.store.puts
        assert shipper.step().retry_after_s == 0.25
        assert node.store.puts == tried, "not before its time"
        waits = []
        for _ in range(10):
            node.clock.advance(int(report.retry_after_s * 1_000_000))
            ids += make_calls(agent, 1)
            report = shipper.step()
            waits.append(report.retry_after_s)
            assert report.backlog_bytes > 0
        assert waits[:3] == [0.5, 1.0, 2.0]
        assert waits[-1] == LONGEST_S
        node.store.away = False
        node.clock.advance(30_000_000)
        report = shipper.step()
        assert (report.store_error, report.backlog_bytes, report.retry_after_s) == ("", 0, 0.0)
    assert node.ids() == sorted(ids)
    node.check()


def test_a_put_whose_answer_was_lost_is_counted_once(node: Node) -> None:
    """Threat 63. Control: equality by row digest in Uploader.put."""
    with node.agent() as agent, node.shipper() as shipper:
        ids = make_calls(agent, 3)
        shipper.step()
        ids += make_calls(agent, 3)
        node.store.lose_answers = True
        assert shipper.step().store_error
        node.store.lose_answers = False
        node.clock.advance(1_000_000)
        report = shipper.step()
        assert (report.segments, report.usage_rows, report.conflicts) == (1, 3, 0)
    assert node.ids() == sorted(ids)
    node.check()


def test_a_batch_that_was_sealed_before_a_restart_goes_under_its_key(node: Node) -> None:
    """Threat 60. Control: the intent in the shipper's journal. The next life, days later, makes the same object again."""
    with node.agent() as agent:
        ids = make_calls(agent, 3)
        first = node.shipper()
        node.store.away = True
        first.step()
        first.close()
        ids += make_calls(agent, 2)
        node.store.away = False
        node.clock.advance(3 * 86_400_000_000)
        with node.shipper("n2") as second:
            assert second.step().usage_rows == 5
    keys = [o.key for o in node.store.list("usage/raw/")]
    assert keys == [
        "usage/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-00000001.parquet",
        "usage/raw/v1/ingest_date=2026-09-24/writer=shipper.n2/e1-00000001.parquet",
    ]
    assert node.ids() == sorted(ids)
    node.check()


def test_equal_rows_under_the_key_are_success(node: Node) -> None:
    """Threat 62. Control: Uploader.put. The same rows in other bytes (another library wrote them) are no conflict."""
    with node.agent() as agent:
        make_calls(agent, 3)
        first = node.shipper()
        node.store.lose_answers = True
        first.step()
        first.close()
        node.store.lose_answers = False
        key = next(o.key for o in node.store.list("usage/raw/"))
        table = pq.read_table(pa.BufferReader(node.store.get(key)))
        other = pa.BufferOutputStream()
        pq.write_table(table, other, compression="none", row_group_size=2)
        (node.store.root / key).write_bytes(other.getvalue().to_pybytes())
        with node.shipper() as second:
            report = second.step()
    assert (report.conflicts, report.usage_rows) == (0, 3)
    assert list(node.store.list("usage/quarantine/")) == []
    assert len(node.ids()) == 3


@pytest.mark.parametrize("there", ["other rows", "no parquet"])
def test_other_rows_under_the_key_raise_the_alarm(node: Node, there: str) -> None:
    """Threat 62. Control: Uploader.put. What is there stays, ours go to quarantine, an audit fact says so, all else goes on."""
    with node.agent() as agent:
        ids = make_calls(agent, 3)
        first = node.shipper()
        node.store.lose_answers = True
        first.step()
        first.close()
        node.store.lose_answers = False
        key = next(o.key for o in node.store.list("usage/raw/"))
        whole = node.store.get(key)
        foreign = b"not parquet"
        if there == "other rows":
            sink = pa.BufferOutputStream()
            pq.write_table(pq.read_table(pa.BufferReader(whole)).slice(1), sink)
            foreign = sink.getvalue().to_pybytes()
        (node.store.root / key).write_bytes(foreign)
        with node.shipper() as second:
            report = second.step()
            later = make_calls(agent, 1)
            assert second.step().usage_rows == 1
    assert (report.conflicts, report.usage_rows) == (1, 0)
    assert node.store.get(key) == foreign
    kept = [o.key for o in node.store.list("usage/quarantine/")]
    assert len(kept) == 1
    held = pq.read_table(pa.BufferReader(node.store.get(kept[0]))).column("event_id").to_pylist()
    assert sorted(held) == sorted(ids)
    (alarm,) = node.audits(AuditAction.SEGMENT_CONFLICT)
    assert alarm["object_id"] == key
    assert json.loads(alarm["detail_json"])["kept"] == kept[0]
    assert later


def test_a_call_without_an_end_is_lost_when_its_process_is_gone(node: Node) -> None:
    """Threats 59 and 61. Control: Shipper._end. Not before: an open call of a living process may still end."""
    agent = node.agent()
    with node.shipper() as shipper:
        done = make_calls(agent, 2)
        open_calls = [admitted() for _ in range(3)]
        agent.append_many([call_fact(c) for c in open_calls])
        assert shipper.step().lost_events == 0
        # One ends after it was read as open; one by an interim event, which is no end.
        agent.append(usage_fact(final(open_calls[0])))
        agent.append(usage_fact(final(open_calls[1], kind="interim", event_id=admitted().event_id)))
        agent.close()
        report = shipper.step()
        assert (report.lost_events, report.ended_journals, report.torn_bytes) == (2, 1, 0)
        assert shipper.step().ended_journals == 0
    lost = {r["event_id"]: r for r in node.rows() if r["kind"] == "lost"}
    assert set(lost) == {lost_event_id(c.event_id) for c in open_calls[1:]}
    assert {r["reservation_id"] for r in lost.values()} == {c.reservation_id for c in open_calls[1:]}
    assert Counter(r["kind"] for r in node.rows()) == {"final": len(done) + 1, "interim": 1, "lost": 2}
    (end,) = node.audits(AuditAction.JOURNAL_END)
    assert (end["object_id"], end["outcome"]) == (f"{AGENT}/e1", "done")
    assert json.loads(end["detail_json"]) == {"last_seq": 9, "torn_bytes": 0, "lost_calls": 2, "broken": ""}
    node.check()


def test_open_calls_are_remembered_over_a_restart(node: Node) -> None:
    """Control: Read.low. A call that an earlier shipper saw open is lost when its process dies under a later one."""
    with node.agent() as agent:
        call = admitted()
        agent.append(call_fact(call))
        closed = admitted()
        agent.append(call_fact(closed))
        for _ in range(3):
            make_calls(agent, 5)
            with node.shipper(max_rows=4) as shipper:
                shipper.step()
        agent.append(usage_fact(final(closed)))
    with node.shipper() as shipper:
        assert shipper.step().lost_events == 1
    assert [r["invocation_id"] for r in node.rows() if r["kind"] == "lost"] == [call.invocation_id]
    node.check()


def test_an_ending_that_was_cut_short_is_not_told_twice(node: Node) -> None:
    """Control: Recovered.lost_ids and told. A shipper dies between its facts about a journal's end."""
    agent = node.agent()
    calls = [admitted() for _ in range(3)]
    agent.append_many([call_fact(c) for c in calls])
    agent.close()
    with node.shipper() as shipper:
        shipper.step()
    # Cut the shipper's own journal after each of the facts that it wrote about the end.
    own = next((node.journals / "shipper.n1" / "e1").glob("*.seg"))
    facts = everything(node.journals)
    told = [i for i, f in enumerate(facts) if f.stream is Stream.USAGE or f.body.get("action") == AuditAction.JOURNAL_END]
    assert len(told) == 4
    whole = own.read_bytes()
    reader, ends = JournalReader(node.journals, JournalId("shipper.n1", 1)), []
    while reader.read(1):
        ends.append(reader.position.offset)
    for cut in ends[1:5]:
        own.write_bytes(whole[:cut])
        for old in list_journals(node.journals):
            if old.writer_id == "shipper.n2":
                shutil.rmtree(old.folder(node.journals))
        shutil.rmtree(node.store.root)
        with node.shipper("n2") as shipper:
            shipper.step()
        assert Counter(r["kind"] for r in node.rows()) == {"lost": 3}
        assert len([a for a in node.audits(AuditAction.JOURNAL_END) if a["object_id"] == f"{AGENT}/e1"]) == 1


def test_a_torn_tail_is_counted_and_its_call_lost(node: Node) -> None:
    """Threat 61. The valid part is shipped; how many bytes were lost is in the report and in the audit log."""
    agent = node.agent()
    ids = make_calls(agent, 2)
    agent.close()
    path = next((node.journals / AGENT / "e1").glob("*.seg"))
    path.write_bytes(path.read_bytes()[:-5])
    with node.shipper() as shipper:
        report = shipper.step()
    assert (report.lost_events, report.usage_rows) == (1, 2)
    assert report.torn_bytes > 100
    assert Counter(r["kind"] for r in node.rows()) == {"final": 1, "lost": 1}
    assert ids[0] in node.ids()
    (end,) = node.audits(AuditAction.JOURNAL_END)
    assert (end["outcome"], json.loads(end["detail_json"])["torn_bytes"]) == ("failed", report.torn_bytes)
    node.check()


def test_a_changed_journal_raises_the_alarm_and_the_others_go_on(node: Node) -> None:
    """Threat 51. Control: IntegrityError → Shipper._break. The good part is shipped, once, also after a restart."""
    agent, other = node.agent(), node.agent(writer_id="agent.acme.other")
    good = make_calls(agent, 2)
    with node.shipper() as shipper:
        shipper.step()
        make_calls(agent, 2)
        path = next((node.journals / AGENT / "e1").glob("*.seg"))
        data = bytearray(path.read_bytes())
        data[len(data) * 5 // 8] ^= 1
        path.write_bytes(data)
        ids = make_calls(other, 1)
        assert shipper.step().broken_journals == 1
        ids += make_calls(other, 1)
        assert shipper.step().broken_journals == 0
    with node.shipper() as shipper:
        assert shipper.step().broken_journals == 0
        agent.close()
        other.close()
        assert shipper.step().ended_journals == 2
    (alarm,) = node.audits(AuditAction.JOURNAL_BROKEN)
    assert alarm["object_id"] == f"{AGENT}/e1"
    assert str(path) in alarm["reason"]
    assert re.search(r"record [5-8]: it is not whole", alarm["reason"])
    assert {*good, *ids} <= set(node.ids())
    assert len(node.ids()) == len(set(node.ids()))


def test_a_fact_that_is_no_row_is_kept_in_the_audit_log(node: Node) -> None:
    """Threat 75. Control: build_table. It is not zeroed, does not stop the others, and can be looked at."""
    with node.agent() as agent, node.shipper() as shipper:
        ids = make_calls(agent, 1)
        agent.append(Fact(Stream.USAGE, final().to_body() | {"tokens_output": -5}))
        agent.append(Fact(Stream.CALL, {"event_id": "none"}))
        ids += make_calls(agent, 1)
        assert shipper.step().refused_facts == 2
        assert shipper.step().refused_facts == 0
    assert node.ids() == sorted(ids)
    refused = node.audits(AuditAction.FACT_QUARANTINE)
    assert [json.loads(r["detail_json"])["seq"] for r in refused] == [4, 3]
    assert "'tokens_output': -5" in json.loads(refused[1]["detail_json"])["body"]
    assert "tokens_output" in refused[1]["reason"]


def test_audit_facts_ship_beside_usage(node: Node) -> None:
    """In the same batch, under their own prefix."""
    event = AuditEvent.new(node.clock, AuditAction.ADMISSION_DECIDE, "denied", actor="governance", tenant_id="acme")
    with node.agent(writer_id="governance") as governance, node.shipper() as shipper:
        governance.append(Fact(Stream.AUDIT, event.to_body()))
        report = shipper.step()
    assert (report.audit_rows, report.usage_rows, report.segments) == (1, 0, 1)
    assert [r["event_id"] for r in node.rows(Stream.AUDIT)] == [event.event_id]


def test_nothing_is_stored_in_a_store_that_overwrites(node: Node) -> None:
    """Threat 66. Control: the probe in Uploader._create, whoever starts the shipper."""
    node.store.overwrite = True
    with node.agent() as agent, node.shipper() as shipper:
        make_calls(agent, 1)
        with pytest.raises(ConfigurationError, match="If-None-Match"):
            shipper.step()
    assert list(node.store.list("usage/")) == []


def test_one_shipper_works_on_a_directory(node: Node) -> None:
    """Control: lock_directory. Two would ship everything twice, whatever their node ids."""
    with node.shipper("n1"), pytest.raises(ConflictError, match="Another shipper"):
        node.shipper("n2")
    node.shipper("n2").close()


def test_with_seal_off_only_what_was_sealed_goes_on(node: Node) -> None:
    """A drain that takes nothing new."""
    with node.agent() as agent, node.shipper() as shipper:
        make_calls(agent, 1)
        assert shipper.step(seal=False).segments == 0
        node.store.away = True
        shipper.step()
        node.store.away = False
        node.clock.advance(1_000_000)
        make_calls(agent, 1)
        assert shipper.step(seal=False).usage_rows == 1
        assert shipper.step().usage_rows == 1


def test_a_failed_own_journal_forgets_no_fact(node: Node) -> None:
    """When the intent cannot be written nothing is shipped, and the next step begins at the same facts."""
    with node.agent() as agent, node.shipper() as shipper:
        ids = make_calls(agent, 2)
        real, shipper._writer.append_many = shipper._writer.append_many, refuse  # type: ignore[method-assign]  # a full disk
        with pytest.raises(StorageError):
            shipper.step()
        shipper._writer.append_many = real  # type: ignore[method-assign]  # there is room again
        assert shipper.step().usage_rows == 2
    assert node.ids() == sorted(ids)
    node.check()


def refuse(facts: object) -> int:
    raise StorageError("no room")


def test_old_journals_are_removed_after_a_checkpoint(node: Node) -> None:
    """Only what ended, was shipped, and is old; a writer's last epoch stays as an empty folder that nobody writes again."""
    for epoch in (1, 2):
        with node.agent(epoch) as agent:
            make_calls(agent, 1)
    with node.agent(3) as living, node.shipper(keep_ended_s=3_600) as shipper:
        make_calls(living, 1)
        with node.agent(writer_id="gateway.r1") as gone:
            make_calls(gone, 1)
        assert shipper.step().ended_journals == 3
        node.clock.advance(3_599_000_000)
        shipper.step()
        assert JournalId(AGENT, 1) in list_journals(node.journals)
        node.clock.advance(7_200_000_000)
        shipper.step()
        left = [str(j) for j in list_journals(node.journals)]
        assert left == [f"{AGENT}/e3", "gateway.r1/e1", "shipper.n1/e1"]
        assert list((node.journals / "gateway.r1" / "e1").glob("*.seg")) == []
        with pytest.raises(ConflictError):
            node.agent(writer_id="gateway.r1")
        make_calls(living, 1)
        assert shipper.step().usage_rows == 1
    with node.shipper() as shipper:
        report = shipper.step()
        # The living one ended, and the shipper before.
        assert (report.ended_journals, report.usage_rows, report.broken_journals) == (2, 0, 0)
    assert len(node.ids()) == len(set(node.ids())) == 5
    node.check()


def test_a_later_life_goes_on_from_the_checkpoint(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of journals too: a checkpoint is cut into parts, and a part alone is none."""
    monkeypatch.setattr("cluster.lake.ship_log.CHECKPOINT_JOURNALS", 2)
    agents = [node.agent(writer_id=f"agent.acme.a{i}") for i in range(7)]
    ids: list[str] = []
    for _ in range(3):
        for agent in agents:
            ids += make_calls(agent, 1)
        with node.shipper() as shipper:
            assert shipper.step().usage_rows == 7
    for agent in agents:
        agent.close()
    with node.shipper() as shipper:
        shipper.step()
    with node.shipper() as shipper:
        assert shipper.step().ended_journals == 1
    assert node.ids() == sorted(ids)
    node.check()
