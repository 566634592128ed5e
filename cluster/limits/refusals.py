"""Why a call is refused for want of room: which account, which window, what its bound is, what is used, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import FieldError, SovereignError
from cluster.limits.account import AccountId
from cluster.limits.lease import Holder
from cluster.limits.windows import Window


class BudgetExceededError(SovereignError):
    """A budget has no room for the most that the call may cost; nothing was started."""

    code = "budget_exceeded"
    status = 429


class RateLimitedError(SovereignError):
    """The tenant calls faster, or has more calls under way, than its plan allows; nothing was started."""

    code = "rate_limited"
    status = 429
    retryable = True


def refusal(holder: Holder, amounts: Mapping[str, int], *, final: bool) -> SovereignError | None:
    """Return why `amounts` are not to be had; None while they may yet be.

    What others have settled does not come back, so a wait is for nothing when too little is left beside it; with `final`
    the wait is over, and what lacks room is refused whatever may come back.
    """
    for name, lack in holder.lacking(amounts).items():
        lease = holder.leases.get(name)
        if lease is None or not lease.heard:
            continue
        if final or lease.bound - lease.used < amounts[name]:
            return _refusal(AccountId.parse(name), lease.bound, lease.used, amounts[name], lack)
    return None


def raises(scope: str) -> str:
    """Return who can raise what bounds this kind of account, and where that stands."""
    return {"key": "whoever manages the tenant's keys", "project": "an operator"}.get(scope, "an operator of the plan")


def _refusal(account: AccountId, bound: int, used: int, asked: int, lack: int) -> SovereignError:
    whose = f"{account.scope} {account.owner.rpartition('.')[2]}"
    if account.window == Window.NOW:
        return RateLimitedError(
            f"{whose} has as many calls under way as it may have: {bound}.",
            hint=f"Retry when some have ended, or have {raises(account.scope)} raise `limits.concurrency`.",
            errors=[FieldError("limits.concurrency", f"{bound} at once")],
            retry_after_s=1,
        )
    unit = "tokens" if account.unit == "tokens" else "micro-dollars"
    window = {"total": "in all", "day": "today (UTC)", "month": "this month (UTC)"}[account.window.partition("-")[0]]
    left = max(0, bound - used)
    return BudgetExceededError(
        f"The budget of {whose} has no room for this call: {used} of {bound} {unit} are spent {window}, and the call may take "
        f"{asked}, {lack} more than is free beside the calls under way.",
        hint="Ask for less (`max_tokens`), wait for the calls under way or the next window, or have the budget raised.",
        errors=[FieldError(f"budget.{account.scope}.{account.window}.{account.unit}", f"{used} of {bound} used, {left} left")],
        retry_after_s=60 if left < asked else 1,
    )
