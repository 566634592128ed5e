"""What this process knows of what bounds callers: their projects' and keys' budgets and rates, asked anew beside the calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cluster.errors import SovereignError
from cluster.identity.principal import Principal
from cluster.limits.callers import CallerTerms, owners
from cluster.limits.terms import Bound, accounts_of

# How long terms are believed before they are asked for again, beside the calls.
TERMS_S: Final = 5.0
MAX_CALLERS: Final = 50_000

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class Caller:
    """One project with one key, or without."""

    terms: CallerTerms
    stale_at: float
    _accounts: tuple[tuple[str, str], ...] = ()
    # When one of the accounts' windows ends, in microseconds since 1970 UTC.
    _until_us: int = 0

    def accounts(self, now_us: int) -> tuple[tuple[str, str], ...]:
        """Return account and unit of each bound that holds now."""
        if self.terms.bounds and now_us >= self._until_us:
            self._accounts, self._until_us = accounts_of(self.terms.bounds, now_us)
        return self._accounts


class Callers:
    """For one event loop. Who was not heard of is asked about before their call; later a stale answer serves meanwhile."""

    def __init__(
        self, ask: Callable[[str, list[tuple[str, str]]], Awaitable[Any]], heard: Callable[[Sequence[Bound]], None]
    ) -> None:
        """`ask` returns the JSON of the terms of a tenant's owners, or raises SovereignError; `heard` takes their bounds."""
        self._ask = ask
        self._heard = heard
        self._known: dict[_Key, Caller] = {}
        self._asking: dict[_Key, asyncio.Task[Caller]] = {}

    async def of(self, who: Principal) -> Caller:
        """Return what bounds the calls of `who`; raises UnavailableError when that is not known and can't be asked."""
        key = (str(who.tenant), owners(who))
        known = self._known.get(key)
        if known is None:
            return await asyncio.shield(self._look(key))
        if known.stale_at < time.monotonic():
            self._look(key)
        return known

    def _look(self, key: _Key) -> asyncio.Task[Caller]:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._asked(key))
            task.add_done_callback(lambda t: self._done(key, t))
        return task

    async def _asked(self, key: _Key) -> Caller:
        terms = CallerTerms.from_json(await self._ask(key[0], list(key[1])))
        self._heard(terms.bounds)
        self._known.pop(key, None)
        while len(self._known) >= MAX_CALLERS:
            del self._known[next(iter(self._known))]
        caller = self._known[key] = Caller(terms, time.monotonic() + TERMS_S)
        return caller

    def _done(self, key: _Key, task: asyncio.Task[Caller]) -> None:
        del self._asking[key]
        if not task.cancelled() and isinstance(task.exception(), SovereignError) and (known := self._known.get(key)):
            known.stale_at = time.monotonic() + 1.0
