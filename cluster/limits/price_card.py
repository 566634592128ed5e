"""What usage costs until rate cards come: whole millionths of a US dollar, rounded up, so that no call is free by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Final

from cluster.agents.budget import Budget
from cluster.errors import ConfigurationError

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-dollars: of a million tokens of each class, of one tool call, of a second of CPU."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    tool_call: int = 0
    cpu_second: int = 0

    @property
    def input_at_most(self) -> int:
        """The most that a million tokens of a prompt may cost, whatever of them is cached."""
        return max(self.input_uncached, self.cache_read, self.cache_write)

    @property
    def output_at_most(self) -> int:
        """The most that a million tokens of an answer may cost, thought or said."""
        return max(self.output, self.reasoning)

    def to_json(self) -> dict[str, int]:
        """Return plain values for the constructor."""
        return asdict(self)


NO_PRICE: Final = Price()


@dataclass(frozen=True, slots=True)
class Quantities:
    """What was used; token classes are disjoint."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    tool_calls: int = 0
    cpu_us: int = 0


def cost_of(price: Price, used: Quantities) -> Budget:
    """Return what `used` counts in a budget: all its tokens, and its cost, rounded up once over everything."""
    millionths = (
        used.input_uncached * price.input_uncached
        + used.cache_read * price.cache_read
        + used.cache_write * price.cache_write
        + used.output * price.output
        + used.reasoning * price.reasoning
        + used.tool_calls * price.tool_call * _MILLION
        + used.cpu_us * price.cpu_second
    )
    tokens = used.input_uncached + used.cache_read + used.cache_write + used.output + used.reasoning
    return Budget(tokens, -(-millionths // _MILLION))


def price_of(card: Mapping[str, Price], model: str) -> Price:
    """Return the price of `model` by its longest pattern; raises ConfigurationError without one: nothing is free unsaid."""
    found = [pattern for pattern in card if fnmatchcase(model, pattern)]
    if not found:
        raise ConfigurationError(f"The price card has no price for {model}.", hint="Add one to policies/data/prices.yaml.")
    return card[max(found, key=lambda pattern: (len(pattern), pattern))]
