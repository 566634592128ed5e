"""The chat request: strict, and every wrong field is named."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidRequestError
from serve_apps.chat import ChatRequest

GOOD: dict[str, Any] = {"model": "agent-1", "messages": [{"role": "user", "content": "hi"}]}


def test_what_clients_send_is_taken() -> None:
    """Text parts join, developer messages become system messages, the stream options are kept."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = ChatRequest.parse(
        GOOD
        | {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]}
        | {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": 5}
    )
    assert [m.plain() for m in chat.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "../etc/passwd"}, "model"),
        ({"model": "%2e%2e"}, "model"),
        ({"model": "a\x00b"}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "\u0430gent"}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"model": "a" * 64}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages.0.extra"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"tenant": "other"}, "tenant"),
        ({"metadata": {"conversation_id": "../x"}}, "metadata.conversation_id"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    """Each kind of wrong input is refused with the path of the field (threats 22, 27)."""
    with pytest.raises(InvalidRequestError) as caught:
        ChatRequest.parse(GOOD | change)
    assert any(f"{e.field}.".startswith(f"{field}.") for e in caught.value.errors), caught.value.errors


@pytest.mark.parametrize("body", [[], "x", 1, None, {}])
def test_what_is_no_chat_request_is_refused(body: Any) -> None:
    """A body of another shape is an error, not a crash."""
    with pytest.raises(InvalidRequestError):
        ChatRequest.parse(body)
