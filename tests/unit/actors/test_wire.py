"""What travels inside a call frame."""

from __future__ import annotations

import pickle
from dataclasses import replace

import msgpack
import pytest

from actors.wire import CallAnswer, CallOrder, Usage
from cluster.agents.client_tools import ClientTools
from cluster.errors import InvalidRequestError

ORDER = CallOrder(invocation_id="i", messages=[{"role": "user", "content": "grüße"}], thread_id="t", queue_us=3)
ANSWER = CallAnswer("text", "stop", "scripted:ok", Usage(tokens_input_uncached=1, tokens_cache_read=2, tokens_reasoning=4))


def test_order_and_answer_come_back_as_they_went() -> None:
    """Both survive the wire unchanged."""
    assert CallOrder.from_bytes(ORDER.to_bytes()) == ORDER
    assert CallAnswer.from_bytes(ANSWER.to_bytes()) == ANSWER


def test_what_few_calls_ask_for_travels_with_those_alone() -> None:
    """A plain call and answer are what an earlier release sends and takes (control: what to_bytes leaves out)."""
    rich = replace(
        ORDER,
        model_settings={"seed": 1},
        client_tools=ClientTools([{"name": "weather"}], named="weather", parallel=False),
        response_schema={"type": "object"},
        instructions="Be brief.",
        after="i0",
    )
    assert CallOrder.from_bytes(rich.to_bytes()) == rich
    called = replace(ANSWER, tool_calls=[{"id": "c", "name": "weather", "arguments": "{}"}])
    assert CallAnswer.from_bytes(called.to_bytes()) == called
    assert msgpack.unpackb(rich.to_bytes()).keys() - msgpack.unpackb(ORDER.to_bytes()).keys() == {
        "model_settings",
        "client_tools",
        "response_schema",
        "instructions",
        "after",
    }
    assert "tool_calls" not in msgpack.unpackb(ANSWER.to_bytes())
    with pytest.raises(InvalidRequestError):
        CallOrder.from_bytes(msgpack.packb(msgpack.unpackb(ORDER.to_bytes()) | {"client_tools": {"surprise": 1}}))


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
