"""Tool calls and their results stand together in what a model is sent, whatever became of them in the conversation."""

from __future__ import annotations

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage


def whole_exchanges(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Return `messages` with the results of each tool call right after it: an error where there is none.

    A turn that was cancelled or killed between a tool call and its result leaves a call without one in the conversation,
    and so does a client that goes on without running its function; a result may also come late, or answer nothing.
    Providers refuse every later turn of such a conversation.
    """
    if _are_whole(messages):
        return messages
    results = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage)}
    whole: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            continue
        whole.append(message)
        if isinstance(message, AIMessage):
            whole += [
                results.get(c["id"] or "")
                or ToolMessage("This tool call was interrupted.", name=c["name"], tool_call_id=c["id"] or "", status="error")
                for c in message.tool_calls
            ]
    return whole


def _are_whole(messages: list[BaseMessage]) -> bool:
    awaited: set[str | None] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in awaited:
                return False
            awaited.remove(message.tool_call_id)
        elif awaited:
            return False
        elif isinstance(message, AIMessage):
            awaited = {c["id"] for c in message.tool_calls}
    return not awaited
