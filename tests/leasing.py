"""Leases and the limiter together, over a real store and real journals; only Ray and governance are left out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from actors.leases import Leases
from actors.limiter import LimiterActor
from cluster.limits.callers import NO_TERMS, CallerTerms
from cluster.limits.price_card import Price
from cluster.limits.terms import Bound, Terms, bounds_to_json
from cluster.limits.windows import Window
from cluster.settings import Settings

TENANT = "tenant.default.total.tokens"


class Rules:
    """What governance would say."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.tokens = 1_000
        self.rpm: int | None = None
        self.tpm: int | None = None
        self.concurrency: int | None = None
        self.bounded = True
        # By scope and name, such as "key.3f9a".
        self.callers: dict[str, CallerTerms] = {}

    async def call(self, method: str, *arguments: object, timeout_s: float = 0) -> Any:
        if method == "caller_terms":
            return self.callers.get(f"{arguments[1]}.{arguments[2]}", NO_TERMS).to_json()
        bounds = [Bound("tenant", self.tenant, Window.TOTAL, "tokens", self.tokens)]
        if self.concurrency is not None:
            bounds.append(Bound("tenant", self.tenant, Window.NOW, "calls", self.concurrency))
        if method == "tenant_bounds":
            return bounds_to_json(bounds)
        bounds.append(Bound("agent", f"{self.tenant}.a", Window.TOTAL, "tokens", 10 * self.tokens))
        return Terms(tuple(bounds) if self.bounded else (), self.rpm, self.tpm, Price(), 1, 0, 100, 0).to_json()


class Local:
    """The handle of a limiter in this process, as Ray's is: whoever waits for one that ended hears of it."""

    def __init__(self, actor: LimiterActor, ended: asyncio.Event) -> None:
        self._actor = actor
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        method, ended = getattr(self._actor, name), self._ended

        class Remote:
            async def remote(self, *arguments: Any) -> Any:
                work, end = asyncio.ensure_future(method(*arguments)), asyncio.ensure_future(ended.wait())
                try:
                    await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        raise ValueError("the actor died")
                    return work.result()
                finally:
                    work.cancel()
                    end.cancel()

        return Remote()


class Cluster:
    """A limiter and the processes that ask it."""

    def __init__(self, home: Path, tenant: str = "default") -> None:
        self.settings = Settings(home=home, journal_sync_ms=1_000)
        self.rules = Rules(tenant)
        self.limiter, self.ended = self._limiter(), asyncio.Event()
        self.leases: list[Leases] = []

    def _limiter(self) -> LimiterActor:
        return LimiterActor(self.settings.to_json(), self.rules)  # type: ignore[arg-type]  # answers what is asked here

    def process(self) -> Leases:
        leases = Leases(self.settings, lambda: Local(self.limiter, self.ended))
        self.leases.append(leases)
        return leases

    async def restart_limiter(self) -> None:
        old, ended = self.limiter, self.ended
        self.limiter, self.ended = self._limiter(), asyncio.Event()
        ended.set()
        await old.stop()

    def kill(self, leases: Leases) -> None:
        """End a process without a word: its tasks stop, and its journal's lock is free."""
        leases._closed = True
        for task in leases._tasks:
            task.cancel()
        assert leases._journal is not None
        leases._journal.close()

    def use(self, account: str = TENANT) -> tuple[int, int]:
        return self.limiter._books.use_of(account)

    async def close(self) -> None:
        for leases in self.leases:
            await leases.aclose()
        await self.limiter.stop()
