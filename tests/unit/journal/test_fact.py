"""Facts as bytes and back."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import IntegrityError, InvalidRequestError, PayloadTooLargeError
from cluster.journal.fact import MAX_FACT_BYTES, Fact, Stream, decode_fact
from tests.sizes import soak

PLAIN = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
BODIES = st.dictionaries(st.text(), st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8))


@settings(max_examples=soak(40, 2_000), deadline=None)
@given(st.sampled_from(Stream), BODIES)
def test_a_fact_reads_back_as_it_was_written(stream: Stream, body: dict[str, object]) -> None:
    """Whatever plain values a body holds."""
    fact = Fact(stream, body)
    assert decode_fact(fact.encode()) == fact


@pytest.mark.parametrize("value", [1 << 64, object(), "lone \ud800 surrogate", {1, 2}])
def test_a_value_that_has_no_place_in_a_journal_is_refused(value: object) -> None:
    """Before anything is written, and with the stream's name."""
    with pytest.raises(InvalidRequestError, match="stream usage"):
        Fact(Stream.USAGE, {"x": value}).encode()


def test_a_fact_has_a_bound() -> None:
    """A reader's memory is bounded by it."""
    with pytest.raises(PayloadTooLargeError):
        Fact(Stream.AUDIT, {"x": "y" * MAX_FACT_BYTES}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"nonsense",
        msgpack.packb(7),
        msgpack.packb((1, "usage")),
        msgpack.packb((1, "gossip", {})),
        msgpack.packb((1, "usage", [])),
    ],
)
def test_bytes_that_are_no_fact_are_refused(payload: bytes) -> None:
    """With IntegrityError, never with another exception."""
    with pytest.raises(IntegrityError):
        decode_fact(payload)


def test_a_fact_of_a_later_version_says_so() -> None:
    """It is not guessed at."""
    with pytest.raises(IntegrityError, match="version 2") as e:
        decode_fact(msgpack.packb((2, "usage", {})))
    assert "newer release" in e.value.hint
