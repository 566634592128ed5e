"""Rate cards for tests."""

from __future__ import annotations

from cluster.billing.rate_card import RateCard, read_card

HEAD = """\
format: 1
card: standard
version: 1
currency: USD
effective_from: 2026-01-01T00:00:00Z
"""


def card(rules: str, head: str = HEAD) -> RateCard:
    """Return the card with `rules` as YAML below `rules:`, or with further keys after them."""
    return read_card(f"{head}rules:\n{rules}")
