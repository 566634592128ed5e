"""What travels inside a call frame."""

from __future__ import annotations

import pickle

import msgpack
import pytest

from actors.wire import CallAnswer, CallOrder, Usage
from cluster.errors import InvalidRequestError

ORDER = CallOrder(invocation_id="i", messages=[{"role": "user", "content": "grüße"}], thread_id="t", queue_us=3)
ANSWER = CallAnswer("text", "stop", "scripted:ok", Usage(tokens_input_uncached=1, tokens_cache_read=2, tokens_reasoning=4))


def test_order_and_answer_come_back_as_they_went() -> None:
    """Both survive the wire unchanged."""
    assert CallOrder.from_bytes(ORDER.to_bytes()) == ORDER
    assert CallAnswer.from_bytes(ANSWER.to_bytes()) == ANSWER


def test_totals_count_every_class_once() -> None:
    """The five token classes are disjoint; input and output are their sums."""
    assert (ANSWER.usage.input_tokens, ANSWER.usage.output_tokens) == (3, 4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"v": 2}),
        msgpack.packb({"v": 1, "surprise": 1}),
        pickle.dumps({"v": 1}),
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    """Another version, an unknown field, a pickle: an error that says so, and nothing runs."""
    with pytest.raises(InvalidRequestError):
        CallOrder.from_bytes(body)
    with pytest.raises(InvalidRequestError):
        CallAnswer.from_bytes(body)
