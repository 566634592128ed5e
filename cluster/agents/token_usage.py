"""What one answer of a model used, as five disjoint token classes whose sum is what the provider counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage

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
    raw = metadata.get("token_usage") or metadata.get("usage")
    meter.provider_usage.append(dict(raw) if isinstance(raw, Mapping) else dict(usage))


def charge_interrupted(meter: CallMeter, pieces: int) -> None:
    """Add what a model call used that was stopped after `pieces` streamed pieces, before any usage came.

    A piece counts as one output token; the note in `provider_usage` says that this is an estimate.
    """
    meter.tokens_output += pieces
    meter.provider_usage.append({"interrupted": True, "estimated_output_tokens": pieces})


def _sum(details: Mapping[str, Any], suffix: str, prefix: str = "") -> int:
    # OpenAI's service tiers put a prefix before the class ("priority_cache_read").
    return sum(v for k, v in details.items() if isinstance(v, int) and v > 0 and k.endswith(suffix) and k.startswith(prefix))
