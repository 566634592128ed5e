"""Leases and the limiter together, over a real store and real journals; only Ray and governance are left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.invoker import Invocation
from actors.leases import Leases, Reservation
from actors.limiter import LimiterActor
from cluster.agents.budget import Budget
from cluster.clock import SystemClock
from cluster.errors import UnavailableError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.fact import Fact, Stream
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter
from cluster.limits.price_card import Price
from cluster.limits.refusals import BudgetExceededError, RateLimitedError
from cluster.limits.terms import Bound, Terms, bounds_to_json
from cluster.limits.windows import Window
from cluster.settings import Settings

TENANT, AGENT = "tenant.default.total.tokens", "agent.default.a.total.tokens"
WHO = Principal(TenantId("default"), ProjectId("default"), "key:test", frozenset(Scope))


class Rules:
    """What governance would say."""

    def __init__(self) -> None:
        self.tokens = 1_000
        self.rpm: int | None = None
        self.tpm: int | None = None
        self.concurrency: int | None = None
        self.bounded = True

    async def call(self, method: str, *arguments: object, timeout_s: float = 0) -> Any:
        bounds = [Bound("tenant", "default", Window.TOTAL, "tokens", self.tokens)]
        if self.concurrency is not None:
            bounds.append(Bound("tenant", "default", Window.NOW, "calls", self.concurrency))
        if method == "tenant_bounds":
            return bounds_to_json(bounds)
        bounds.append(Bound("agent", "default.a", Window.TOTAL, "tokens", 10_000))
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

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, journal_sync_ms=1_000)
        self.rules = Rules()
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


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    await made.close()


def call(tokens: int, deadline_s: float = 60.0) -> Invocation:
    """A call that reserves just so many tokens: 64 and 17 are for the prompt."""
    return Invocation(WHO, "a", [{"role": "user", "content": "x"}], deadline_s, max_output_tokens=tokens - 81)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for is in other threads and files
            await asyncio.sleep(0.01)


def agent_says(
    settings: Settings, reservation: Reservation, spent: int | None, *, sub_call: bool = False, epoch: int = 1
) -> JournalWriter:
    """An agent that took the call on, and ended it when `spent` says so."""
    name, rid = ("b", f"{reservation.reservation_id}.i2") if sub_call else ("a", reservation.reservation_id)
    journal = JournalWriter(settings.journal_dir, f"agent.default.{name}", epoch, sync_ms=1_000)
    now = SystemClock().now_us()
    at = ("e", now, "default", "default", name, "1", "i", rid, "m")
    journal.append(Fact(Stream.CALL, CallAdmitted(*at).to_body()))
    if spent is not None:
        event = UsageEvent("e", UsageKind.FINAL, now, *at[1:], Outcome.CANCELLED, True)
        journal.append(Fact(Stream.USAGE, event.to_body() | {"spent": [spent, 0]}))
    return journal


async def test_what_was_settled_is_spent_and_nothing_stays_granted(cluster: Cluster) -> None:
    """After a process has gone in order, the books hold what its calls used and no more."""
    leases = cluster.process()
    one = await leases.reserve(call(100))
    assert one.budget == Budget(100, 0)
    assert cluster.use()[1] >= 100
    leases.settle(one, (30, 0))
    leases.settle(one, (30, 0))
    await leases.aclose()
    cluster.leases.clear()
    await eventually(lambda: cluster.use() == (30, 30))
    assert cluster.use(AGENT) == (30, 30)


async def test_idle_leases_are_called_back_before_anything_is_refused(cluster: Cluster) -> None:
    """One process holds far more than it uses; another can still spend the whole rest, to the last token."""
    first, second = cluster.process(), cluster.process()
    for _ in range(4):
        first.settle(await first.reserve(call(100)), (50, 0))
    await first._exchange()
    await second.reserve(call(800))


async def test_a_call_that_can_not_be_paid_is_refused_by_name(cluster: Cluster) -> None:
    """The refusal says whose budget, its window, what is used of it and what to do; nothing is reserved of it anywhere."""
    leases = cluster.process()
    leases.settle(await leases.reserve(call(900)), (900, 0))
    with pytest.raises(BudgetExceededError, match=r"tenant default has no room.* 900 of 1000 tokens are spent in all") as refused:
        await leases.reserve(call(101))
    assert refused.value.errors[0].field == "budget.tenant.total.tokens"
    leases.settle(await leases.reserve(call(100)), (100, 0))
    seen = {str(a["account"]): a["left"] for a in leases.use("default")}
    assert seen.keys() == {TENANT, AGENT}
    assert seen[TENANT] == 100
    assert leases.use("defaul") == []


@pytest.mark.parametrize(("spent", "free"), [(40, 960), (None, 1_000)])
async def test_threat_80_a_killed_process_blocks_nothing(cluster: Cluster, spent: int | None, free: int) -> None:
    """What its open call used is settled by the agent's word, or returns when the agent died too; the rest is free at once."""
    gone, other = cluster.process(), cluster.process()
    one = await gone.reserve(call(300))
    agent = agent_says(cluster.settings, one, spent)
    cluster.kill(gone)
    await eventually(lambda: cluster.limiter._books.held() or cluster.use()[0] == 40)
    if spent is None:
        await cluster.limiter._resolve()
        assert cluster.use() == (0, 300)  # its agent lives and may spend it
    agent.close()
    await eventually(lambda: cluster.use()[1] == 1_000 - free)
    await other.reserve(call(free))


async def test_what_nobody_heard_of_is_found_out(cluster: Cluster) -> None:
    """A call whose answer was lost counts whole until its agent's journal says what it, and what it asked of others, used."""
    leases = cluster.process()
    one = await leases.reserve(call(300))
    with agent_says(cluster.settings, one, None), agent_says(cluster.settings, one, 25, sub_call=True):
        leases.settle(one, None)
    await eventually(lambda: not leases._unheard)
    await leases._exchange()
    assert cluster.use()[0] == 25


async def test_a_limiter_that_is_killed_forgets_nothing(cluster: Cluster) -> None:
    """Its next life knows every grant: what one process holds another does not get, and the first goes on with it."""
    first, second = cluster.process(), cluster.process()
    one = await first.reserve(call(600))
    await cluster.restart_limiter()
    with pytest.raises(BudgetExceededError):
        await second.reserve(call(500))
    first.settle(one, (600, 0))
    await second.reserve(call(400))


async def test_calls_under_way_are_bounded(cluster: Cluster) -> None:
    """One more at once than the plan has waits a moment, and goes on when one ends."""
    cluster.rules.concurrency = 2
    leases = cluster.process()
    held = [await leases.reserve(call(100)) for _ in range(2)]
    with pytest.raises(RateLimitedError, match="as many calls under way as its plan allows: 2"):
        await leases.reserve(call(100))
    leases.settle(held[0], (0, 0))
    await leases.reserve(call(100))


async def test_calls_a_minute_are_bounded(cluster: Cluster) -> None:
    """One that comes too soon is refused with the time after which to retry."""
    cluster.rules.rpm = 1
    with pytest.raises(RateLimitedError, match="all of the 1 requests a minute") as refused:
        await cluster.process().reserve(call(100))
    assert 50 < (refused.value.retry_after_s or 0) <= 60


async def test_without_the_limiter_a_process_spends_what_it_holds_and_no_more(cluster: Cluster) -> None:
    """Calls go on within the leases that are there; the one that would need another is refused as unavailable."""
    leases = cluster.process()
    leases.settle(await leases.reserve(call(100)), (0, 0))

    def away() -> Any:
        raise ValueError("there is none")

    leases._find, leases._limiter = away, None
    leases.settle(await leases.reserve(call(100)), (0, 0))
    with pytest.raises((UnavailableError, BudgetExceededError)):
        await leases.reserve(call(1_000))


@pytest.mark.parametrize("caller", ["lives", "is killed"])
async def test_a_last_word_that_comes_after_its_call_was_lost_holds(cluster: Cluster, caller: str) -> None:
    """Control: LimiterActor._correct. It is counted once, whoever was told what, and whoever begins anew meanwhile."""
    leases = cluster.process()
    one = await leases.reserve(call(300))
    agent_says(cluster.settings, one, None).close()  # it died midway
    if caller == "lives":
        leases.settle(one, None)
        await eventually(lambda: not leases._unheard)
        await leases._exchange()
    else:
        cluster.kill(leases)
    await eventually(lambda: cluster.limiter._books.lost() and not cluster.limiter._books.held())
    assert cluster.use()[0] == 0
    await cluster.restart_limiter()
    await cluster.limiter._correct()
    assert cluster.use()[0] == 0

    agent_says(cluster.settings, one, 25, epoch=2).close()  # as of a node that is back
    for _ in range(2):
        await cluster.limiter._correct()
        assert (cluster.use()[0], cluster.use(AGENT)[0]) == (25, 25)
    await cluster.restart_limiter()
    await cluster.limiter._correct()
    assert cluster.use()[0] == 25
    # Who asks again, because the answer was lost, is told what it was told.
    asked = {one.reservation_id: [one.agent, one.until_us, dict(one.amounts)]}
    assert orjson.loads(await cluster.limiter.fates(orjson.dumps(asked)))["ok"][one.reservation_id] == {TENANT: 0, AGENT: 0}


async def test_a_call_that_nothing_bounds_is_not_asked_about(cluster: Cluster) -> None:
    """Control: the amounts in Leases.settle. There is nothing to give back, and nothing to keep in mind."""
    cluster.rules.bounded = False
    leases = cluster.process()
    leases.settle(await leases.reserve(call(300)), None)
    assert not leases._unheard


async def test_tokens_a_minute_are_bounded_where_no_budget_is(cluster: Cluster) -> None:
    """Control: Terms.units. What a call may take is known also where only a rate bounds it; what it took stays taken."""
    cluster.rules.tpm, cluster.rules.bounded = 60, False
    leases = cluster.process()
    with pytest.raises(RateLimitedError, match="all of the 60 tokens a minute"):
        await leases.reserve(call(100))
    rate = leases._rates._rates["default.tokens"]
    rate.level = 150
    leases.settle(await leases.reserve(call(100)), (40, 0))
    assert rate.level == 110
    leases.settle(await leases.reserve(call(100)), None)
    assert rate.level == 10
