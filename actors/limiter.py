"""The limiter: the one that hands out leases on budgets, and finds out what became of what dead processes had reserved.

It is asked ahead of calls, never by one. It may die at any instant: what it granted stands in the coordination store
before it says so. Rates need no store: a new life begins with empty buckets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from actors.directory import Governance
from actors.ray_actors import Handle, create
from cluster import wiring
from cluster.agents.budget import MAX_BUDGET, Budget
from cluster.clock import SystemClock
from cluster.coordination.epochs import next_epoch
from cluster.errors import IntegrityError, NotFoundError, SovereignError
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import is_alive
from cluster.limits.account import AccountId, Held
from cluster.limits.callers import NO_TERMS, OWNER_SCOPES, CallerTerms
from cluster.limits.fates import Fates
from cluster.limits.lease_journal import replay
from cluster.limits.limiter import NAME, Answer, HolderRow, Limiter, Report
from cluster.limits.lost import Lost
from cluster.limits.terms import Bound, Terms, bound_of, bounds_from_json
from cluster.limits.token_bucket import TokenBucket
from cluster.settings import Settings
from cluster.telemetry.ecs_log import configure_logging

log = logging.getLogger(__name__)
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

LIMITER: Final = NAME
# How long terms are believed; a changed plan or budget holds after that.
TERMS_S = 5.0
# Between two looks for holders that died and calls whose end is not known.
LOOK_S = 0.5
# Between two looks for the final words of calls that were taken for lost.
CORRECT_S = 10.0
# How long a holder that watches for call-backs is kept waiting.
WATCH_S = 10.0
MAX_TERMS = 100_000


class LimiterActor:
    """Answers in JSON bytes (`{"ok": …}` or `{"problem": …}`), as governance does."""

    def __init__(self, settings: str, governance: Governance | None = None) -> None:
        self._settings = Settings.from_json(settings)
        configure_logging("limiter", level=self._settings.log_level, directory=self._settings.log_dir)
        # One thread: the books are for one, and each transaction waits for the disk.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limiter")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="fates")
        self._coordination = wiring.open_coordination(self._settings)
        self._epoch = next_epoch(self._coordination, NAME)
        self._books = Limiter(self._coordination, self._epoch)
        self._governance = governance or Governance()
        self._terms: dict[tuple[str, str], tuple[Terms, float]] = {}
        self._tenants: dict[str, tuple[tuple[Bound, ...], float]] = {}
        self._callers: dict[tuple[str, str, str], tuple[CallerTerms, float]] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._called: dict[int, set[str]] = {}
        self._watching: dict[int, asyncio.Event] = {}
        self._fates = Fates(self._journal_dirs)
        # For lost reservations, whose agents are others: each reader goes on where it was.
        self._last_words = Fates(self._journal_dirs)
        self._clock = SystemClock()
        self._look = asyncio.Event()
        self._stopped = False
        self._looking = asyncio.ensure_future(self._look_for_ever())

    async def ready(self) -> None:
        """Return when this process answers."""

    async def stop(self) -> None:
        """End; another one may take over."""
        self._stopped = True
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)
        self._thread.shutdown()
        self._reading.shutdown()
        self._coordination.close()

    async def open(self, journal: str, node: str) -> bytes:
        """Return the epoch under which the process with this journal may hold leases."""
        return await self._answer(self._run(self._open, journal, node))

    async def terms(self, tenant: str, agent_id: str) -> bytes:
        """Return what bounds the calls of an agent."""

        async def found() -> Any:
            return (await self._terms_of(tenant, agent_id)).to_json()

        return await self._answer(found())

    async def caller_terms(self, tenant: str, owners: list[tuple[str, str]]) -> bytes:
        """Return what bounds the calls of these owners (project, key) of a tenant together, beside what bounds the agent's."""

        async def found() -> Any:
            return sum(await asyncio.gather(*(self._caller_terms(tenant, s, n) for s, n in owners)), NO_TERMS).to_json()

        return await self._answer(found())

    async def exchange(self, request: bytes) -> bytes:
        """Take over a holder's reports and grant what there is; what is short is called back from others, for the next time."""
        return await self._answer(self._exchange(orjson.loads(request)))

    async def watch(self, epoch: int) -> bytes:
        """Return the accounts that this holder is to give room back of, as soon as there are any; none after a while."""
        event = self._watching.setdefault(epoch, asyncio.Event())
        if not self._called.get(epoch):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), WATCH_S)
        event.clear()
        return orjson.dumps(sorted(self._called.pop(epoch, ())))

    async def fates(self, asked: bytes) -> bytes:
        """Return what reservations have spent whose callers did not hear the end, of those of which it is known."""

        async def found() -> Any:
            known = {
                r: {n: Held(amount, a, until) for n, amount in of.items()} for r, (a, until, of) in orjson.loads(asked).items()
            }
            said: dict[str, Mapping[str, int]] = {}
            fates = await self._read(self._fates.of, _asked(known), self._clock.now_us())
            for r, fate in fates.items():
                said[r] = await self._run(self._told, r, known[r], by_account(known[r], fate.spent), fate.lost)
            return said

        return await self._answer(found())

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        epoch, number = request["epoch"], request["number"]
        reports = {name: Report(*values) for name, values in request["reports"].items()}
        bounds = dict(zip(reports, await asyncio.gather(*(self._bound(name) for name in reports)), strict=True))
        answers, short = await self._run(self._take_over, epoch, number, reports, bounds)
        for name, epochs in short.items():
            self._call_back(name, epochs)
        rates = {name: self._take(name, *values) for name, values in request.get("rates", {}).items()}
        return {
            "number": number,
            "answers": {name: [a.granted, a.bound, a.used, a.taken] for name, a in answers.items()},
            "rates": rates,
        }

    def _take_over(
        self, epoch: int, number: int, reports: dict[str, Report], bounds: dict[str, int]
    ) -> tuple[dict[str, Answer], dict[str, list[int]]]:
        answers = self._books.exchange(epoch, number, reports, bounds)
        return answers, self._books.short(epoch, reports, bounds)

    def _open(self, journal: str, node: str) -> int:
        return self._books.open(journal, node)

    def _call_back(self, name: str, epochs: Collection[int]) -> None:
        for epoch in epochs:
            self._called.setdefault(epoch, set()).add(name)
            self._watching.setdefault(epoch, asyncio.Event()).set()
        # Some of them may be dead.
        self._look.set()

    def _take(self, name: str, least: int, most: int, per_minute: int) -> list[int]:
        now_us = self._clock.monotonic_us()
        bucket = self._buckets.setdefault(name, TokenBucket(per_minute, now_us))
        if bucket.per_minute != per_minute:
            bucket.change_rate(per_minute, now_us)
        taken = bucket.take(least, min(most, max(least, bucket.per_minute // 60)), now_us)
        return [taken, 0 if taken else bucket.wait_us(least, now_us)]

    async def _bound(self, account_name: str) -> int:
        """Return the bound of an account; 0 when it has none any more, so that nothing more is granted."""
        account = AccountId.parse(account_name)
        tenant, _, name = account.owner.partition(".")
        try:
            if account.scope in OWNER_SCOPES:
                bound = bound_of((await self._caller_terms(tenant, account.scope, name)).bounds, account)
                # Taken away on purpose; holders that have not heard of it refuse nothing for it.
                return MAX_BUDGET if bound is None else bound
            bounds = (await self._terms_of(tenant, name)).bounds if name else await self._tenant_bounds(tenant)
        except NotFoundError:
            return 0
        return bound_of(bounds, account) or 0

    async def _caller_terms(self, tenant: str, scope: str, name: str) -> CallerTerms:
        def asked() -> Any:
            return self._governance.call("caller_terms", tenant, scope, name, timeout_s=5.0)

        return await _known(self._callers, (tenant, scope, name), asked, CallerTerms.from_json)

    async def _terms_of(self, tenant: str, agent_id: str) -> Terms:
        def asked() -> Any:
            return self._governance.call("terms", tenant, agent_id, timeout_s=5.0)

        return await _known(self._terms, (tenant, agent_id), asked, Terms.from_json)

    async def _tenant_bounds(self, tenant: str) -> tuple[Bound, ...]:
        def asked() -> Any:
            return self._governance.call("tenant_bounds", tenant, timeout_s=5.0)

        return await _known(self._tenants, tenant, asked, bounds_from_json)

    async def _look_for_ever(self) -> None:
        correct_at = 0.0
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), LOOK_S)
            self._look.clear()
            try:
                await self._recover()
                await self._resolve()
                if time.monotonic() >= correct_at:
                    correct_at = time.monotonic() + CORRECT_S
                    await self._correct()
            except Exception:
                log.exception("what dead processes had reserved stays reserved until the next look")
                await asyncio.sleep(LOOK_S)

    async def _recover(self) -> None:
        for epoch, row in (await self._run(self._holders)).items():
            try:
                await self._run(self._recover_holder, epoch, row)
            except Exception:  # the others' are free all the same
                log.exception("what holder %s had reserved stays reserved until the next look", row.journal)

    def _recover_holder(self, epoch: int, row: HolderRow) -> None:
        directory, journal = self._settings.of_node(row.node).lease_dir, JournalId.parse(row.journal)
        if is_alive(directory, journal):
            return
        try:
            found = replay(directory, journal)
        except IntegrityError as e:  # nothing of it is free, because nobody can say what of it was spent
            log.error("the reservations of %s can't be read, and stay: %s", journal, e)  # noqa: TRY400
            return
        self._books.recover(epoch, found.settled, found.opened)
        shutil.rmtree(journal.folder(directory).parent, ignore_errors=True)
        log.info("holder %s is gone; %d accounts of it have open reservations", journal, len(found.opened))

    async def _resolve(self) -> None:
        held = await self._run(self._held)
        if not held:
            return
        fates = await self._read(self._fates.of, _asked(held), self._clock.now_us())
        for reservation, fate in fates.items():
            await self._run(self._settle, reservation, by_account(held[reservation], fate.spent), fate.lost)

    async def _correct(self) -> None:
        """Let what was heard at last of lost reservations hold."""
        lost = await self._run(self._lost)
        if lost:
            spent = await self._read(self._last_words.finals, {r: of.agent for r, of in lost.items()})
            for reservation, used in spent.items():
                await self._run(self._supersede, reservation, by_account(lost[reservation].amounts, used))
            await self._run(self._forget_lost)

    def _holders(self) -> dict[int, HolderRow]:
        return dict(self._books.holders)

    def _held(self) -> dict[str, dict[str, Held]]:
        return self._books.held()

    # Not bound methods of the books: after a fault those are others.

    def _settle(self, reservation: str, used: dict[str, int], lost: bool) -> None:
        self._books.resolve(reservation, used, lost=lost)

    def _told(self, reservation: str, held: dict[str, Held], used: dict[str, int], lost: bool) -> Mapping[str, int]:
        return self._books.told(reservation, held, used, lost=lost)

    def _lost(self) -> dict[str, Lost]:
        return self._books.lost()

    def _supersede(self, reservation: str, used: dict[str, int]) -> None:
        self._books.correct(reservation, used)

    def _forget_lost(self) -> None:
        self._books.forget_lost(self._clock.now_us())

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what touches the books in their thread; after a fault they are read anew, because the store's state counts."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._guarded, work, *arguments))

    def _guarded(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return work(*arguments)
        except NotFoundError:
            raise
        except Exception as e:
            if getattr(e, "code", "") != "unknown_holder":
                self._books = Limiter(self._coordination, self._epoch)
            raise

    async def _read(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, partial(work, *arguments))

    async def _answer(self, work: Any) -> bytes:
        try:
            return orjson.dumps({"ok": await work})
        except SovereignError as e:
            return json.dumps({"problem": e.to_problem()}).encode()

    def _journal_dirs(self) -> list[Path]:
        nodes = self._settings.nodes_dir
        joined = [p / "journal" for p in nodes.iterdir() if p.is_dir()] if nodes.is_dir() else []
        return [self._settings.journal_dir, *joined]


async def _known(known: dict[K, tuple[V, float]], key: K, ask: Callable[[], Awaitable[Any]], read: Callable[[Any], V]) -> V:
    """Return what was heard lately under `key`, or else ask; what was never asked again goes first."""
    found = known.get(key)
    if found is None or found[1] < time.monotonic():
        value = read(await ask())
        known.pop(key, None)
        while len(known) >= MAX_TERMS:
            del known[next(iter(known))]
        found = known[key] = (value, time.monotonic() + TERMS_S)
    return found[0]


def _asked(held: Mapping[str, Mapping[str, Held]]) -> dict[str, tuple[str, int]]:
    return {r: (h.agent, h.until_us) for r, of in held.items() for h in list(of.values())[:1]}


def by_account(accounts: Iterable[str], spent: Budget) -> dict[str, int]:
    """Return what was spent of each account, in its unit; calls under way are never used up."""
    by_unit = {"tokens": spent.tokens, "micro_usd": spent.micro_usd, "calls": 0}
    return {name: by_unit[name.rpartition(".")[2]] for name in accounts}


def start_limiter(settings: Settings) -> Handle:
    """Create the limiter, or return the one that runs."""
    return create(LimiterActor, settings.to_json(), name=LIMITER, restarts=True, concurrency=1_000, on_head=True)
