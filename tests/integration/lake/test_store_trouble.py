"""A real S3 store behind a proxy that makes every kind of trouble; what was written meanwhile is in the lake exactly once."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.clock import FakeClock
from cluster.errors import JournalFullError, StorageError
from cluster.journal.backlog import Backlog
from cluster.journal.fact import Stream
from cluster.journal.gate import SAMPLE_US, JournalGate
from cluster.journal.writer import JournalWriter
from cluster.lake.backoff import LONGEST_S
from cluster.lake.layout import raw_prefix
from cluster.lake.ship import Shipper
from cluster.lake.verify import verify_raw
from cluster.storage.object_store import PutOutcome
from cluster.storage.s3_object_store import S3ObjectStore
from tests.lake_samples import AGENT, make_calls
from tests.servers.crooked_s3 import CrookedS3, running_crooked_s3
from tests.servers.seaweedfs import S3Server, s3_credentials, seaweedfs

__all__ = ["s3_credentials", "seaweedfs"]

pytestmark = pytest.mark.usefixtures("s3_credentials")
ALL = 1 << 30

Act = Callable[[CrookedS3], None]


def refusing(status: int, code: str) -> Act:
    def act(crooked: CrookedS3) -> None:
        crooked.refuse, crooked.refusal = ALL, (status, code)

    return act


# What goes wrong. It ends with all of it put right.
TROUBLES: dict[str, Act] = {
    "throttled": refusing(503, "SlowDown"),
    "too many requests": refusing(429, "TooManyRequests"),
    "broken inside": refusing(500, "InternalError"),
    "forbidden": refusing(403, "AccessDenied"),
    "hangs, and carries it out later": lambda crooked: crooked.may_enter.clear(),
    "connection refused": lambda crooked: crooked.go_away(),
    "answer lost": lambda crooked: setattr(crooked, "lose_answers", ALL),
    "cut in the middle of a PUT": lambda crooked: setattr(crooked, "cut_bodies", ALL),
    "answer torn": lambda crooked: setattr(crooked, "tear_answers", ALL),
}


def put_right(crooked: CrookedS3) -> None:
    crooked.refuse = crooked.lose_answers = crooked.tear_answers = crooked.cut_bodies = 0
    crooked.may_enter.set()
    crooked.go_away()
    crooked.listen()


@pytest.fixture
def crooked(seaweedfs: S3Server) -> Iterator[CrookedS3]:
    url = urlsplit(seaweedfs.endpoint)
    assert url.hostname
    assert url.port
    with running_crooked_s3((url.hostname, url.port)) as proxy:
        yield proxy


class Node:
    """One node whose lake is behind the proxy, and a straight road to the same lake for the test."""

    def __init__(self, folder: Path, server: S3Server, crooked: CrookedS3) -> None:
        self.journals = folder / "journal"
        self.clock = FakeClock()
        prefix = uuid.uuid4().hex
        self.straight = S3ObjectStore(server.bucket, prefix, endpoint=server.endpoint)
        # One try and a short patience, so that a test takes no longer than it must.
        self.crooked = S3ObjectStore(
            server.bucket, prefix, endpoint=crooked.endpoint, connect_timeout_s=0.3, read_timeout_s=0.3, attempts=1
        )

    def shipper(self) -> Shipper:
        return Shipper.open(self.journals, self.crooked, "n1", clock=self.clock, lock_wait_s=0)

    def usage_ids(self) -> list[str]:
        keys = [o.key for o in self.straight.list(raw_prefix(Stream.USAGE))]
        tables = [pq.read_table(pa.BufferReader(self.straight.get(key))) for key in keys]
        return sorted(i for t in tables for i in t.column("event_id").to_pylist())

    def check(self, ids: list[str]) -> None:
        assert self.usage_ids() == sorted(ids)
        for stream in (Stream.USAGE, Stream.AUDIT):
            assert list(map(str, verify_raw(self.straight, stream))) == []


@pytest.fixture
def node(tmp_path: Path, seaweedfs: S3Server, crooked: CrookedS3) -> Node:
    return Node(tmp_path, seaweedfs, crooked)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_threat_64_nothing_is_dropped_and_nothing_counted_twice(node: Node, crooked: CrookedS3, trouble: str) -> None:
    """Facts keep coming while the store is in trouble; afterwards each is in the lake once, without an alarm."""
    with JournalWriter(node.journals, AGENT, 1, clock=node.clock) as agent, node.shipper() as shipper:
        ids = make_calls(agent, 2)
        assert shipper.step().store_error == ""
        TROUBLES[trouble](crooked)
        waiting = 0
        for _ in range(3):
            ids += make_calls(agent, 2)
            report = shipper.step()
            assert report.store_error, "the store took it after all"
            assert 0 < report.retry_after_s <= LONGEST_S
            assert report.backlog_bytes > waiting, "what is not proved to be stored waits"
            waiting = report.backlog_bytes
            # Before its time the store is left alone.
            assert not shipper.step().store_error
            node.clock.advance(int(LONGEST_S * 1_000_000))
        put_right(crooked)
        report = shipper.step()
        assert (report.store_error, report.backlog_bytes, report.conflicts) == ("", 0, 0)
    node.check(ids)


def test_threat_65_half_an_object_is_never_visible(node: Node, crooked: CrookedS3) -> None:
    """Control: S3ObjectStore.put_if_absent, one PUT of a known length. One that was cut left nothing, under no name."""
    data, before = bytes(range(256)) * 4_000, [o.key for o in node.straight.list("")]
    crooked.cut_bodies = ALL
    with pytest.raises(StorageError):
        node.crooked.put_if_absent("half", data, sha256=hashlib.sha256(data).hexdigest())
    assert [o.key for o in node.straight.list("")] == before
    assert node.straight.head("half") is None
    put_right(crooked)
    assert node.crooked.put_if_absent("half", data, sha256=hashlib.sha256(data).hexdigest()) is PutOutcome.CREATED
    assert node.straight.get("half") == data


def test_a_shipper_that_is_replaced_in_the_middle_of_trouble(node: Node, crooked: CrookedS3) -> None:
    """The next life goes on under the same keys; the late PUT of the one before arrives as well, and is the same object."""
    with JournalWriter(node.journals, AGENT, 1, clock=node.clock) as agent:
        ids = make_calls(agent, 2)
        crooked.may_enter.clear()
        with node.shipper() as first:
            assert first.step().store_error
        ids += make_calls(agent, 2)
        put_right(crooked)
        with node.shipper() as second:
            assert second.step().conflicts == 0
    node.check(ids)


def test_threat_64_at_the_limit_admission_is_refused_until_it_has_drained(node: Node, crooked: CrookedS3) -> None:
    """An hour without a store: the journal grows to its limit and not far beyond; then it drains, and all is admitted again."""
    limit_bytes = 40_000
    gate = JournalGate(node.journals, limit_bytes=limit_bytes, reserve_bytes=0, clock=node.clock)
    ids: list[str] = []
    refused = 0
    with JournalWriter(node.journals, AGENT, 1, clock=node.clock) as agent, node.shipper() as shipper:

        def second() -> None:
            """Pass one second: the shipper works and says how much waits, and one call is asked for."""
            nonlocal refused
            report = shipper.step()
            Backlog(report.backlog_bytes, node.clock.monotonic_us(), retry_after_s=report.retry_after_s).write(node.journals)
            try:
                gate.check()
                ids.extend(make_calls(agent, 1))
            except JournalFullError:
                refused += 1
            node.clock.advance(SAMPLE_US)

        second()
        crooked.go_away()
        for _ in range(3_600):
            second()
        assert refused > 3_000
        assert limit_bytes <= shipper.waiting_bytes() < limit_bytes + 4_000
        crooked.listen()
        refused_before = refused
        for _ in range(10):
            second()
        assert refused - refused_before <= int(LONGEST_S) + 1, "it did not go on within seconds"
        shipper.step()
        assert shipper.waiting_bytes() == 0
    node.check(ids)


@pytest.mark.parametrize(("trouble", "asked"), [((503, "SlowDown"), 1.0), ((429, "TooManyRequests"), 1.0), ((500, "X"), None)])
def test_a_store_says_for_how_long_it_wants_rest(
    node: Node, crooked: CrookedS3, trouble: tuple[int, str], asked: float | None
) -> None:
    """A throttling store is left alone for longer than one that merely failed, and for as long as it says."""
    crooked.refuse, crooked.refusal = ALL, trouble
    with pytest.raises(StorageError) as failed:
        node.crooked.get("a/b")
    assert failed.value.retry_after_s == asked
    crooked.retry_after = "7"
    with pytest.raises(StorageError) as failed:
        node.crooked.get("a/b")
    assert failed.value.retry_after_s == 7.0
    crooked.retry_after = "Wed, 21 Oct 2026 07:28:00 GMT"
    with pytest.raises(StorageError) as failed:
        node.crooked.get("a/b")
    assert failed.value.retry_after_s == asked
