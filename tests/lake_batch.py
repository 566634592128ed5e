"""A batch of two journals that one life seals and does not store, and ways in which a journal breaks then."""

from __future__ import annotations

import shutil

from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from tests.lake_node import Node
from tests.lake_samples import make_calls

# Two tenants' journals; the keys of the batch of both.
A, B = JournalId("agent.a.x", 1), JournalId("agent.b.x", 1)
FIRST_KEYS = [f"{s}/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-00000001.parquet" for s in ("audit", "usage")]


def denied(node: Node, tenant: str) -> Fact:
    event = AuditEvent.new(node.clock, AuditAction.GATEWAY_REFUSE, "denied", actor="key", tenant_id=tenant, object_id="o")
    return Fact(Stream.AUDIT, event.to_body())


def sealed_not_stored(node: Node) -> None:
    """One life seals five refusals of each of two tenants, and two calls, and the store is away."""
    for journal in (A, B):
        with node.agent(writer_id=journal.writer_id) as agent:
            agent.append_many([denied(node, journal.writer_id.split(".")[1]) for _ in range(5)])
            make_calls(agent, 2)
    node.store.away = True
    with node.shipper() as shipper:
        assert shipper.step().store_error
    node.store.away = False


def remove(node: Node, journal: JournalId = A) -> None:
    shutil.rmtree(journal.folder(node.journals))


def damage(node: Node, journal: JournalId = A, good: int = 3) -> None:
    """Change a byte of the record after the `good` first ones."""
    reader = JournalReader(node.journals, journal)
    reader.read(good)
    path = next(journal.folder(node.journals).glob("*.seg"))
    data = bytearray(path.read_bytes())
    data[reader.position.offset + 60] ^= 1
    path.write_bytes(data)


def rewrite(node: Node, journal: JournalId = A) -> None:
    """Write another journal of the same name and length: whole in itself."""
    remove(node, journal)
    with node.agent(writer_id=journal.writer_id) as agent:
        agent.append_many([denied(node, "a") for _ in range(5)])
        make_calls(agent, 2)


def refusals(node: Node) -> dict[str, int]:
    tenants = [r["tenant_id"] for r in node.audits(AuditAction.GATEWAY_REFUSE)]
    return {t: tenants.count(t) for t in sorted(set(tenants))}


def usage_of(node: Node) -> dict[str, int]:
    """Return the `final` rows of each journal."""
    writers = [r["writer_id"] for r in node.rows() if r["kind"] == "final"]
    return {w: writers.count(w) for w in sorted(set(writers))}


def check_only_a_is_broken(node: Node) -> None:
    assert [r["object_id"] for r in node.audits(AuditAction.JOURNAL_BROKEN)] == [str(A)]
    assert node.audits(AuditAction.SEGMENT_CONFLICT) == []
    assert list(node.store.list("audit/quarantine/")) == []
    node.check()
