"""What is known of the cost of a call that ends without an answer, on the exception that ends it.

A call that was not sent has spent nothing. Of one that was given up its agent says at its end what it spent.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from cluster.errors import SovereignError

# What the agent said that a call had spent which was given up: tokens and micro-dollars; None when it did not say.
GivenUp = asyncio.Future[tuple[int, int] | None]


def note_unsent(error: SovereignError | asyncio.CancelledError) -> None:
    """Say of what ends a call that nothing of it was sent."""
    cast("Any", error).spent = (0, 0)


def note_given_up(left: asyncio.CancelledError, end: GivenUp | None) -> None:
    """Say of the cancellation of a call where its end will be heard of."""
    cast("Any", left).given_up = end


def spent_of(error: BaseException) -> tuple[int, int] | None:
    """Return what the call had spent that `error` ended; None when nobody has said so yet."""
    spent: tuple[int, int] | None = getattr(error, "spent", None)
    return spent


def end_of(error: BaseException) -> GivenUp | None:
    """Return where the end of the call will be heard of that `error` gave up."""
    end: GivenUp | None = getattr(error, "given_up", None)
    return end
