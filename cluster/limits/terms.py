"""What bounds the calls of one agent, as its callers' processes know it: accounts, rates, and what a call may cost."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from cluster.admission.catalog import BudgetBound, Plan
from cluster.agents.budget import UNITS, Budget
from cluster.agents.record import AgentRecord
from cluster.errors import IntegrityError
from cluster.limits.account import AccountId
from cluster.limits.price_card import Price
from cluster.limits.windows import Window, window_at
from cluster.limits.worst_case import MODEL_CALLS, call_at_most, cpu_time_at_most

# What a tool's description adds to each prompt, of what is reserved ahead.
TOOL_TOKENS = 1_024


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound of one account in whichever window holds now."""

    scope: str
    owner: str
    window: Window
    unit: str
    amount: int


@dataclass(frozen=True)
class Terms:
    """Of one agent, by the plan and the record that hold now."""

    bounds: tuple[Bound, ...]
    # Of the tenant; None is no bound.
    requests_per_minute: int | None
    tokens_per_minute: int | None
    price: Price
    max_iterations: int
    tools: int
    cpu_milli: int
    # Bytes of the instructions, which every prompt begins with.
    instructions: int

    @classmethod
    def of(cls, plan: Plan, record: AgentRecord, price: Price) -> Self:
        """Return the terms of an agent under its tenant's plan."""
        spec = record.spec
        own = BudgetBound(tokens=spec.budget.tokens or None, micro_usd=spec.budget.micro_usd or None)
        rows = (("agent", f"{record.tenant}.{spec.agent_id}", Window.TOTAL, own),)
        return cls(
            tenant_bounds(plan, str(record.tenant)) + bounds_of(rows),
            plan.limits.requests_per_minute,
            plan.limits.tokens_per_minute,
            price,
            spec.max_iterations,
            len(record.tools),
            spec.resources.cpu_milli,
            len(spec.instructions.encode()),
        )

    @cached_property
    def units(self) -> frozenset[str]:
        """The units in which anything is bounded, by a budget or a rate."""
        return frozenset(b.unit for b in self.bounds) | (set() if self.tokens_per_minute is None else {"tokens"})

    def at_most(
        self,
        prompt_bytes: int,
        output_tokens: int | None,
        deadline_s: float,
        *,
        conversation: bool,
        asked_twice: bool = False,
        steps: int = MODEL_CALLS,
        units: Set[str] = frozenset(),
    ) -> Budget:
        """Return what is to be reserved for a call of so many model calls, in the units that are bounded here or by `units`."""
        whole = call_at_most(
            self.price,
            input_tokens=prompt_bytes + self.instructions + self.tools * TOOL_TOKENS,
            output_tokens=output_tokens,
            max_iterations=self.max_iterations,
            model_calls=max(steps, 2) if asked_twice else steps,
            tools=self.tools > 0 or asked_twice,
            conversation=conversation,
            cpu_us=cpu_time_at_most(deadline_s, self.cpu_milli),
        )
        units = self.units | units
        return Budget(whole.tokens if "tokens" in units else 0, whole.micro_usd if "micro_usd" in units else 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads."""
        return {name: getattr(self, name) for name in _PLAIN} | {
            "bounds": bounds_to_json(self.bounds),
            "price": asdict(self.price),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the terms that `to_json` wrote; raises IntegrityError."""
        try:
            return cls(
                bounds=bounds_from_json(value["bounds"]), price=Price(**value["price"]), **{name: value[name] for name in _PLAIN}
            )
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"An agent's terms can't be read: {e!r}.") from None


def tenant_bounds(plan: Plan, tenant: str) -> tuple[Bound, ...]:
    """Return what bounds all calls of a tenant together."""
    rows = (
        ("tenant", tenant, Window.DAY, plan.spending.day),
        ("tenant", tenant, Window.MONTH, plan.spending.month),
        ("tenant", tenant, Window.TOTAL, plan.budget),
    )
    most = plan.limits.concurrency
    return bounds_of(rows) + (() if most is None else (Bound("tenant", tenant, Window.NOW, "calls", most),))


def accounts_of(bounds: Sequence[Bound], now_us: int) -> tuple[tuple[tuple[str, str], ...], int]:
    """Return account and unit of each bound, and when the first of their windows ends."""
    found, ends_us = [], window_at(Window.TOTAL, now_us)[1]
    for bound in bounds:
        window, until_us = window_at(bound.window, now_us)
        found.append((str(AccountId(bound.scope, bound.owner, window, bound.unit)), bound.unit))
        ends_us = min(ends_us, until_us)
    return tuple(found), ends_us


def bound_of(bounds: Sequence[Bound], account: AccountId) -> int | None:
    """Return the bound of an account of any window; None when it has none any more."""
    window = account.window.partition("-")[0]
    wanted = (account.scope, account.owner, account.unit, window)
    return next((b.amount for b in bounds if (b.scope, b.owner, b.unit, b.window.value) == wanted), None)


def bounds_to_json(bounds: Sequence[Bound]) -> list[list[Any]]:
    """Return plain values that `bounds_from_json` reads."""
    return [[b.scope, b.owner, b.window.value, b.unit, b.amount] for b in bounds]


def bounds_from_json(value: list[list[Any]]) -> tuple[Bound, ...]:
    """Return the bounds that `bounds_to_json` wrote; raises TypeError or ValueError for anything else."""
    return tuple(Bound(s, o, Window(w), u, a) for s, o, w, u, a in value)


def bounds_of(rows: Sequence[tuple[str, str, Window, BudgetBound]]) -> tuple[Bound, ...]:
    """Return the bounds that these rows have, unit by unit."""
    return tuple(Bound(s, o, w, u, amount) for s, o, w, b in rows for u in UNITS if (amount := b.of(u)) is not None)


def prompt_bytes(messages: Sequence[dict[str, Any]]) -> int:
    """Return more tokens than these messages' text can have: one for each byte, and what frames each."""
    total = 0
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) and len(message) == 2 else repr(message)
        total += len(text.encode("utf-8", "replace")) + 16
    return total


_PLAIN = ("requests_per_minute", "tokens_per_minute", "max_iterations", "tools", "cpu_milli", "instructions")
