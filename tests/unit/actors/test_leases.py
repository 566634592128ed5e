"""Leases and the limiter together, over a real store and real journals; only Ray and governance are left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.invoker import Invocation
from actors.leases import Reservation
from cluster.agents.budget import MAX_BUDGET, Budget
from cluster.clock import SystemClock
from cluster.errors import UnavailableError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.journal.fact import Fact, Stream
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter
from cluster.limits.callers import NO_TERMS, CallerTerms, Rate, shown_to
from cluster.limits.limiter import Limiter
from cluster.limits.price_card import Price
from cluster.limits.refusals import BudgetExceededError, RateLimitedError
from cluster.limits.terms import Bound, Terms
from cluster.limits.windows import Window
from cluster.settings import Settings
from tests.leasing import TENANT, Cluster

AGENT = "agent.default.a.total.tokens"
WHO = Principal(TenantId("default"), ProjectId("default"), "key:test", frozenset(Scope))


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
    seen = {str(a["account"]): a["left"] for a in leases.use(shown_to(WHO))["accounts"]}
    assert seen.keys() == {TENANT, AGENT}
    assert seen[TENANT] == 100
    assert leases.use(shown_to(replace(WHO, tenant=TenantId("defaul"))))["accounts"] == []


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
    with pytest.raises(RateLimitedError, match="as many calls under way as it may have: 2"):
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
    rate = leases._rates._rates["tenant.default.tokens"]
    rate.level = 150
    leases.settle(await leases.reserve(call(100)), (40, 0))
    assert rate.level == 110
    leases.settle(await leases.reserve(call(100)), None)
    assert rate.level == 10


async def test_a_holder_that_can_not_be_ended_keeps_no_others_reservations(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: one by one in LimiterActor._recover. The books are read anew after the fault, and the next holder is ended."""
    first, second = cluster.process(), cluster.process()
    await first.reserve(call(100))
    await second.reserve(call(100))
    assert first._holder is not None
    assert second._holder is not None
    broken, other, recover = first._holder.epoch, second._holder.epoch, Limiter.recover

    def fails(books: Limiter, epoch: int, *found: Any) -> None:
        if epoch == broken:
            raise UnavailableError("The store refuses it.")
        recover(books, epoch, *found)

    monkeypatch.setattr(Limiter, "recover", fails)
    cluster.kill(first)
    cluster.kill(second)
    await eventually(lambda: other not in cluster.limiter._books.holders)
    assert broken in cluster.limiter._books.holders


BY = "key:3f9a"
MINE = replace(WHO, subject=BY)


def bounded(scope: str, owner: str, tokens: int) -> CallerTerms:
    return CallerTerms((Bound(scope, f"default.{owner}", Window.TOTAL, "tokens", tokens),))


@pytest.mark.parametrize(("scope", "owner"), [("key", "3f9a"), ("project", "default")])
async def test_a_project_or_key_past_its_budget_is_refused_by_name(cluster: Cluster, scope: str, owner: str) -> None:
    """Control: Callers in Leases.reserve. Two processes together let no more through; another key or project goes on."""
    cluster.rules.callers[f"{scope}.{owner}"] = bounded(scope, owner, 300)
    first, second = cluster.process(), cluster.process()
    first.settle(await first.reserve(replace(call(200), principal=MINE)), (200, 0))
    await first._exchange()
    with pytest.raises(BudgetExceededError, match=rf"budget of {scope} {owner} has no room.* 200 of 300 tokens") as refused:
        await second.reserve(replace(call(150), principal=MINE))
    assert refused.value.errors[0].field == f"budget.{scope}.total.tokens"
    second.settle(await second.reserve(replace(call(100), principal=MINE)), (100, 0))
    others = replace(MINE, subject="key:other") if scope == "key" else replace(MINE, project=ProjectId("web"))
    await second.reserve(replace(call(150), principal=others))


async def test_a_changed_budget_holds_without_a_restart_and_what_was_used_counts_on(cluster: Cluster) -> None:
    """Raised, more is let through; taken away, nothing is refused for it any more. A limiter's new life knows what was used."""
    leases = cluster.process()

    async def say(terms: CallerTerms) -> None:
        cluster.rules.callers["key.3f9a"] = terms
        cluster.limiter._callers.clear()
        for known in leases._callers._known.values():
            known.stale_at = 0.0
        await leases._callers.of(MINE)
        await asyncio.gather(*leases._callers._asking.values())

    await say(bounded("key", "3f9a", 300))
    leases.settle(await leases.reserve(replace(call(200), principal=MINE)), (200, 0))
    with pytest.raises(BudgetExceededError):
        await leases.reserve(replace(call(150), principal=MINE))
    await say(bounded("key", "3f9a", 400))
    leases.settle(await leases.reserve(replace(call(150), principal=MINE)), (100, 0))
    await leases._exchange()
    await cluster.restart_limiter()
    with pytest.raises(BudgetExceededError, match="300 of 400 tokens"):
        await cluster.process().reserve(replace(call(150), principal=MINE))
    cluster.rules.callers.clear()
    cluster.limiter._callers.clear()
    assert await cluster.limiter._bound("key.default.3f9a.total.tokens") == MAX_BUDGET  # for who has not heard of it yet
    await say(NO_TERMS)
    await leases.reserve(replace(call(150), principal=MINE))


async def test_a_keys_rates_and_concurrency_are_its_own(cluster: Cluster) -> None:
    """A refusal names the key; who uses another one of the tenant is not slowed down."""
    cluster.rules.callers["key.3f9a"] = CallerTerms((), (Rate("key.default.3f9a", 1, None),))
    cluster.rules.callers["key.many"] = CallerTerms((Bound("key", "default.many", Window.NOW, "calls", 1),))
    leases = cluster.process()
    with pytest.raises(RateLimitedError, match="Key 3f9a uses all of the 1 requests a minute"):
        await leases.reserve(replace(call(100), principal=MINE))
    many = replace(WHO, subject="key:many")
    await leases.reserve(replace(call(100), principal=many))
    with pytest.raises(RateLimitedError, match="key many has as many calls under way as it may have: 1"):
        await leases.reserve(replace(call(100), principal=many))
    await leases.reserve(call(100))
    admin, other = leases.use(shown_to(WHO)), leases.use(shown_to(replace(many, scopes=frozenset())))
    assert [r["rate"] for r in admin["rates"]] == ["key.default.3f9a.requests"]
    assert leases.headers(MINE)["ratelimit-policy"] == '"key-requests";q=1;w=60'
    assert leases.headers(WHO) == {}
    assert other["rates"] == []
    assert {str(a["account"]) for a in other["accounts"]} >= {"key.default.many.now.calls"}


async def test_a_rate_of_tokens_counts_where_no_budget_of_tokens_does(cluster: Cluster) -> None:
    """Control: CallerTerms.units. A call takes its worst case of the rate, and gives back what it did not use."""
    rate = Rate("key.default.3f9a", None, 12_000)
    assert CallerTerms((), (rate,)).units == {"tokens"}
    terms = Terms((), None, 12_000, Price(), 1, 0, 100, 0)
    assert terms.at_most(1, 100, 1.0, conversation=False).tokens == 165
    assert replace(terms, tokens_per_minute=None).at_most(1, 100, 1.0, conversation=False, units={"tokens"}).tokens == 165
    assert not replace(terms, tokens_per_minute=None).at_most(1, 100, 1.0, conversation=False)
