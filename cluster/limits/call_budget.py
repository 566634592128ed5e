"""What one call may spend, as its agent keeps to it: no model call, tool or sub-call begins that might pass what was reserved."""

from __future__ import annotations

from cluster.agents.budget import NO_BUDGET, Budget
from cluster.errors import SovereignError
from cluster.limits.price_card import Price, Quantities, cost_of
from cluster.limits.worst_case import cpu_at_most, output_that_fits


class CallBudgetExceededError(SovereignError):
    """What was reserved for a call does not suffice for its next step; what ran until then is billed."""

    code = "call_budget_exceeded"
    status = 422


class CallBudget:
    """The reservation of one call. A unit with 0 is not bounded; sub-calls draw on it."""

    def __init__(self, price: Price, reserved: Budget, *, cpu_us: int) -> None:
        """`cpu_us` is the CPU time that the call can take at most, which was reserved with the rest."""
        self.price = price
        self.reserved = reserved
        self._cpu = Budget(0, cpu_at_most(price, cpu_us)) if reserved.micro_usd else NO_BUDGET
        # By sub-calls that ended, and what those under way may yet spend.
        self._spent = NO_BUDGET
        self._lent = NO_BUDGET

    def spent(self, used: Quantities) -> Budget:
        """Return what the call has spent, its sub-calls included, when it has used `used` itself."""
        return cost_of(self.price, used) + self._spent + self._lent

    def output_tokens(self, used: Quantities, input_tokens: int, asked: int | None) -> int:
        """Return how long the model's next answer may be; raises CallBudgetExceededError when there is nothing left for one."""
        left = self._left(used)
        most = output_that_fits(self.price, left, self.reserved, input_tokens, asked)
        if most < 1:
            raise CallBudgetExceededError(
                f"The call has {_text(left, self.reserved)} left of the {_text(self.reserved, self.reserved)} reserved for it, "
                f"and its next prompt may take {input_tokens} tokens.",
                hint="Ask for less in one call, or give `max_tokens` so that more of the reservation is for prompts.",
            )
        return most

    def check_tool(self, used: Quantities) -> None:
        """Raise CallBudgetExceededError when the next tool call does not fit."""
        left = self._left(used)
        if self.reserved.micro_usd and left.micro_usd < self.price.tool_call:
            raise CallBudgetExceededError(
                f"A tool call costs {self.price.tool_call} micro-dollars, and the call has {left.micro_usd} left.",
                hint="Ask for less in one call.",
            )

    def lend(self, used: Quantities) -> Budget:
        """Reserve half of what is left for a sub-call and return it, so that several may run at once."""
        left = self._left(used)
        lent = Budget(left.tokens // 2 if self.reserved.tokens else 0, left.micro_usd // 2 if self.reserved.micro_usd else 0)
        if (self.reserved.tokens and lent.tokens < 1) or (self.reserved.micro_usd and lent.micro_usd < 1):
            raise CallBudgetExceededError(
                "The call has nothing left to ask another agent with.", hint="Ask for less in one call."
            )
        self._lent += lent
        return lent

    def repaid(self, lent: Budget, spent: Budget | None) -> None:
        """Take back what a sub-call did not spend; all of it counts as spent when nobody knows."""
        self._lent -= lent
        self._spent += lent if spent is None else spent

    def _left(self, used: Quantities) -> Budget:
        return self.reserved - self.spent(used) - self._cpu


def _text(amount: Budget, bounded: Budget) -> str:
    parts = [f"{max(0, amount.tokens)} tokens"] if bounded.tokens else []
    parts += [f"{max(0, amount.micro_usd)} micro-dollars"] if bounded.micro_usd else []
    return " and ".join(parts)
