"""When the shipper tries again, what it says of it, and what it counts as waiting."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.lake.backoff import FIRST_S, LONGEST_ASKED_S, LONGEST_S, Backoff
from cluster.lake.condition import ShippingCondition
from cluster.storage.object_store import PutOutcome
from tests.lake_node import Node
from tests.lake_samples import make_calls


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_waits_double_up_to_a_bound_and_are_spread() -> None:
    """A thousand nodes do not come back in the same moment, none waits for ever, and none does not wait."""
    longest, shortest = Backoff(jitter=lambda: 1.0), Backoff(jitter=lambda: 0.0)
    waits = [longest.failed() for _ in range(8)]
    assert waits == [FIRST_S * 2**i for i in range(5)] + [LONGEST_S] * 3
    assert [shortest.failed() for _ in range(8)] == [w / 2 for w in waits]
    longest.succeeded()
    assert longest.failed() == FIRST_S


def test_a_store_that_asks_for_more_time_gets_it_within_bounds() -> None:
    """`Retry-After` holds when it is longer, and not when it is absurd."""
    backoff = Backoff(jitter=lambda: 1.0)
    assert backoff.failed(12.0) == 12.0
    assert backoff.failed(0.001) == FIRST_S * 2
    assert backoff.failed(86_400.0) == LONGEST_ASKED_S


def test_a_condition_is_told_when_it_changes() -> None:
    """One line when nothing is shipped any more, one when it is again, however many tries lie between."""
    condition = ShippingCondition()
    assert condition.worked(1_000_000) == ""
    first = condition.failed("PUT x failed: 503.", 2_000_000)
    assert "PUT x failed: 503." in first
    assert [condition.failed("PUT y failed.", 3_000_000), condition.failed("other", 4_000_000)] == ["", ""]
    assert condition.stuck_since_us == 2_000_000
    assert condition.worked(62_000_000) == "facts are shipped again, after 60 s"
    assert (condition.worked(63_000_000), condition.stuck_since_us) == ("", 0)


def test_the_shipper_waits_as_long_as_the_store_asks(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: StoreAwayError.retry_after_s."""

    def throttled(key: str, data: bytes, *, sha256: str) -> PutOutcome:
        raise StorageError("SlowDown", retry_after_s=17.0)

    with node.agent() as agent, node.shipper() as shipper:
        make_calls(agent, 1)
        monkeypatch.setattr(node.store, "put_if_absent", throttled)
        assert shipper.step().retry_after_s == 17.0


def test_a_batch_that_is_sealed_and_not_stored_still_waits(node: Node) -> None:
    """Else the limit would be off by a batch, and status would say that nothing waits while the store is away."""
    with node.agent() as agent, node.agent(writer_id="gateway.r1") as other, node.shipper() as shipper:
        make_calls(agent, 2)
        shipper.step()
        idle = shipper.waiting_bytes()  # the header of the one that wrote nothing
        assert idle < 200
        folder = node.journals / agent.writer_id / "e1"
        before = sum(p.stat().st_size for p in folder.glob("*.seg"))
        make_calls(agent, 3)
        grown = sum(p.stat().st_size for p in folder.glob("*.seg")) - before
        node.store.away = True
        assert shipper.step().backlog_bytes == grown + idle
        make_calls(other, 1)
        assert shipper.step().backlog_bytes > grown + idle
        node.store.away = False
        node.clock.advance(5_000_000)
        assert shipper.step().backlog_bytes == 0


def test_a_store_that_takes_some_is_asked_again_soon(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Throttled in the middle of a long way back, the shipper goes on in a moment, not after the longest wait."""
    with node.agent() as agent, node.shipper(max_rows=4, backoff=Backoff(jitter=lambda: 1.0)) as shipper:
        node.store.away = True
        make_calls(agent, 12)
        while (report := shipper.step()).retry_after_s < LONGEST_S:
            node.clock.advance(int(report.retry_after_s * 1_000_000))
        node.clock.advance(int(LONGEST_S * 1_000_000))
        node.store.away, real = False, node.store.put_if_absent
        left = [3]

        def some(key: str, data: bytes, *, sha256: str) -> PutOutcome:
            left[0] -= 1
            if left[0] < 0:
                raise StorageError("SlowDown")
            return real(key, data, sha256=sha256)

        monkeypatch.setattr(node.store, "put_if_absent", some)
        report = shipper.step()
        assert report.segments > 0
        assert (report.store_error, report.retry_after_s) == ("SlowDown", FIRST_S)
