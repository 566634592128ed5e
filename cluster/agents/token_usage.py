"""What one answer of a model used, as five disjoint token classes whose sum is what the provider counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from cluster.agents.call import CallMeter

# The providers' words for why an answer ended, as OpenAI's `finish_reason`.
_REASONS = {
    "max_tokens": "length",
    "MAX_TOKENS": "length",
    "end_turn": "stop",
    "STOP": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "SAFETY": "content_filter",
    "refusal": "content_filter",
}
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 3
_FRAME_AT_MOST = 16


def charge(meter: CallMeter, message: AIMessage) -> None:
    """Add what `message` used to `meter`: tokens by class, the provider's own usage object, and why it ended."""
    metadata = message.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("stop_reason")
    if reason:
        meter.finish_reason = _REASONS.get(reason, reason)
    usage = message.usage_metadata
    if usage is None:
        # Never silently zero: who rates this call must see that the provider counted nothing.
        meter.provider_usage.append({"unreported": True})
        return
    _add(meter, usage)
    raw = metadata.get("token_usage") or metadata.get("usage")
    meter.provider_usage.append(dict(raw) if isinstance(raw, Mapping) else dict(usage))


def charge_interrupted(
    meter: CallMeter, sent: Sequence[BaseMessage], tools: Sequence[Any] = (), received: AIMessage | None = None
) -> None:
    """Add what a model call used that was stopped before its answer was whole; providers bill its prompt all the same.

    `sent` and `tools` (schemas) went to the model, `received` is what came back until then. What its usage metadata says
    is taken as it is; only what it leaves out is estimated: `estimated_tokens` of each text, tool call and schema, and for
    each message of the prompt 3 more, as OpenAI's cookbook and LangChain's `count_tokens_approximately` count its frame.
    Pictures and sound count nothing. The entry in `provider_usage` says how many tokens of each kind are an estimate.
    """
    reported = received.usage_metadata if received is not None else None
    if received is not None and reported and _ended(received):
        charge(meter, received)  # it was whole: only the reading of it was stopped
        return
    prompt = 0
    if not reported or not reported["input_tokens"]:
        prompt += sum(estimated_tokens(_text_of(m)) + _TOKENS_PER_MESSAGE for m in sent)
        prompt += sum(estimated_tokens(json.dumps(t, default=str, ensure_ascii=False)) for t in tools)
    # A report that came before the end may count only the first of what was said: never less than was heard.
    heard = estimated_tokens(_text_of(received)) if received is not None else 0
    unreported = max(0, heard - (reported["output_tokens"] if reported else 0))
    note: dict[str, Any] = {"interrupted": True, "estimated_input_tokens": prompt, "estimated_output_tokens": unreported}
    if reported:
        _add(meter, reported)
        note["reported"] = dict(reported)
    meter.tokens_input_uncached += prompt
    meter.tokens_output += unreported
    meter.provider_usage.append(note)


def estimated_tokens(text: str) -> int:
    """Return about how many tokens `text` has: its bytes of UTF-8 by 4, rounded up.

    OpenAI's rule of thumb is 4 characters of English to a token. Bytes, because letters beyond ASCII take more tokens too.
    """
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def at_most_tokens(messages: Sequence[BaseMessage]) -> int:
    """Return more tokens than a prompt of these messages can have: one for each byte, and what frames each message."""
    return sum(len(_text_of(m).encode("utf-8", "replace")) + _FRAME_AT_MOST for m in messages)


def schema_tokens(tools: Sequence[Any]) -> int:
    """Return more tokens than these tools' schemas can add to a prompt."""
    return sum(len(json.dumps(t, default=str, ensure_ascii=False).encode("utf-8", "replace")) + _FRAME_AT_MOST for t in tools)


def _ended(message: AIMessage) -> bool:
    return bool(message.response_metadata.get("finish_reason") or message.response_metadata.get("stop_reason"))


def _text_of(message: BaseMessage) -> str:
    text = message.content if isinstance(message.content, str) else str(message.text)
    if isinstance(message, AIMessage) and message.tool_calls:
        text += json.dumps([[c["name"], c["args"]] for c in message.tool_calls], default=str, ensure_ascii=False)
    return text


def _add(meter: CallMeter, usage: UsageMetadata) -> None:
    sent, said = max(0, usage["input_tokens"]), max(0, usage["output_tokens"])
    details_in, details_out = usage.get("input_token_details"), usage.get("output_token_details")
    if details_in:
        # LangChain's input_tokens already contains both classes of cached tokens.
        read = min(sent, _sum(details_in, "cache_read"))
        write = min(sent - read, _sum(details_in, "cache_creation") + _sum(details_in, "input_tokens", "ephemeral_"))
        meter.tokens_cache_read += read
        meter.tokens_cache_write += write
        sent -= read + write
    if details_out:
        reasoning = min(said, _sum(details_out, "reasoning"))
        meter.tokens_reasoning += reasoning
        said -= reasoning
    meter.tokens_input_uncached += sent
    meter.tokens_output += said


def _sum(details: Mapping[str, Any], suffix: str, prefix: str = "") -> int:
    # OpenAI's service tiers put a prefix before the class ("priority_cache_read").
    return sum(v for k, v in details.items() if isinstance(v, int) and v > 0 and k.endswith(suffix) and k.startswith(prefix))
