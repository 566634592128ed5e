"""What an agent may spend: whole numbers only, tokens and millionths of the platform's currency (USD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

UNITS: Final = ("tokens", "micro_usd")
# A bound far above any use, within the whole numbers that JSON readers agree on.
MAX_BUDGET: Final = 10**15


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount in each unit; 0 where nothing is declared."""

    tokens: int = 0
    micro_usd: int = 0

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.tokens + other.tokens, self.micro_usd + other.micro_usd)

    def __sub__(self, other: Budget) -> Budget:
        return Budget(self.tokens - other.tokens, self.micro_usd - other.micro_usd)

    def __bool__(self) -> bool:
        return bool(self.tokens or self.micro_usd)

    def of(self, unit: str) -> int:
        """Return the amount in one of UNITS."""
        return self.tokens if unit == "tokens" else self.micro_usd

    def or_else(self, default: Budget) -> Budget:
        """Return it with the `default` amount in each unit that is not declared."""
        return Budget(self.tokens or default.tokens, self.micro_usd or default.micro_usd)

    def to_json(self) -> dict[str, int]:
        """Return plain values that `from_json` reads."""
        return {"tokens": self.tokens, "micro_usd": self.micro_usd}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Budget:
        """Return the budget that `to_json` wrote; raises KeyError or ValueError when it is not one."""
        amounts = value["tokens"], value["micro_usd"]
        if any(type(x) is not int or x < 0 for x in amounts):
            raise ValueError(f"no budget: {value!r}")
        return cls(*amounts)


NO_BUDGET: Final = Budget()
