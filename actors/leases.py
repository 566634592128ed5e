"""This process's leases: a call reserves here, in microseconds; the limiter is asked beside the calls.

A call that finds no room waits a moment, while idle leases of other processes are called back for it, and only then is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson
from ray.exceptions import RayError

from actors.callers import TERMS_S, Caller, Callers
from actors.ray_actors import Handle, find
from cluster import wiring
from cluster.agents.budget import Budget
from cluster.clock import SystemClock
from cluster.errors import SovereignError, StorageError, UnavailableError, from_problem
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.limits.callers import Rate
from cluster.limits.lease import Exchange, Holder
from cluster.limits.lease_journal import LeaseJournal
from cluster.limits.limiter import NAME, Answer, UnknownHolderError
from cluster.limits.rate_leases import RateLeases
from cluster.limits.refusals import BudgetExceededError, refusal
from cluster.limits.terms import Bound, Terms, accounts_of, prompt_bytes
from cluster.limits.worst_case import MODEL_CALLS
from cluster.settings import Settings

if TYPE_CHECKING:
    from actors.invoker import Invocation

log = logging.getLogger(__name__)

# How long a call waits for room.
WAIT_S: Final = 1.0
# Between two exchanges while calls wait, and while something is to be reported and none does.
SHORT_S: Final = 0.02
REPORT_S: Final = 0.25
# How often the limiter is asked what became of calls of which nothing was heard.
FATES_S: Final = 0.5
# After which leases that nobody draws on are given back.
IDLE_S: Final = 30.0
MAX_TERMS: Final = 10_000
LIMITER_TIMEOUT_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Reservation:
    """What a call may spend, until it is settled."""

    reservation_id: str
    budget: Budget
    # tenant.agent
    agent: str
    until_us: int
    amounts: Mapping[str, int]
    # What it takes of which rate.
    rates: Mapping[str, int]


@dataclass(slots=True)
class _Known:
    terms: Terms
    stale_at: float
    rates: tuple[Rate, ...]
    accounts: tuple[tuple[str, str], ...] = ()
    # When one of the accounts' windows ends, in microseconds since 1970 UTC.
    until_us: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    reservation: Reservation
    done: asyncio.Future[None]


def _beside(invocation: Invocation) -> int:
    """Return more tokens than what is sent beside the messages can have."""
    asked = (invocation.instructions, invocation.client_tools, invocation.response_schema)
    return sum(len(repr(x).encode("utf-8", "replace")) + 256 for x in asked if x)


def _find_limiter() -> Handle:
    return find(NAME)


class Leases:
    """The leases of one process. For one event loop."""

    def __init__(self, settings: Settings, limiter: Callable[[], Handle] = _find_limiter) -> None:
        """`limiter` finds its handle; it blocks."""
        self._find = limiter
        self._settings = settings
        self._clock = SystemClock()
        self._limiter: Handle | None = None
        self._holder: Holder | None = None
        self._journal: LeaseJournal | None = None
        self._opening: asyncio.Lock = asyncio.Lock()
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[_Known]] = {}
        self._callers = Callers(partial(self._call, "caller_terms"), self._rebound)
        self._rates = RateLeases()
        self._waiting: list[_Waiter] = []
        self._wake = asyncio.Event()
        self._unheard: dict[str, Reservation] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Beside cancelling them: a wait that ends in the same moment swallows that.
        self._closed = False

    async def reserve(self, invocation: Invocation) -> Reservation:
        """Reserve the most that a call may cost on all of its accounts.

        Raises BudgetExceededError or RateLimitedError when there is no room, also after a moment, UnavailableError when the
        limiter does not answer and there is too little left here, NotFoundError for an agent that is not there.
        """
        agent = f"{invocation.principal.tenant}.{invocation.agent_id}"
        known = self._known.get(agent)
        if known is None or self._holder is None:
            known = await self._begin(agent)
        elif known.stale_at < time.monotonic():
            self._ask_terms(agent)
        caller = await self._callers.of(invocation.principal)
        now_us = self._clock.now_us()
        if now_us >= known.until_us:
            known.accounts, known.until_us = accounts_of(known.terms.bounds, now_us)
        try:
            return await self._reserve(known, caller, invocation, MODEL_CALLS)
        except BudgetExceededError:
            if not known.terms.tools:
                raise
            # An agent with tools may take many steps and mostly takes few: it gets what its first one needs.
            return await self._reserve(known, caller, invocation, 1)

    async def _reserve(self, known: _Known, caller: Caller, invocation: Invocation, steps: int) -> Reservation:
        tenant = str(invocation.principal.tenant)
        cost = known.terms.at_most(
            prompt_bytes(invocation.messages) + _beside(invocation),
            invocation.max_output_tokens,
            invocation.deadline_s,
            conversation=invocation.conversation_id is not None,
            # An answer of another form than was asked for is asked for once more.
            asked_twice=invocation.response_schema is not None,
            steps=steps,
            units=caller.terms.units,
        )
        by_unit = {"tokens": cost.tokens, "micro_usd": cost.micro_usd, "calls": 1}
        now_us = self._clock.now_us()
        accounts = known.accounts + caller.accounts(now_us)
        amounts = {name: by_unit[unit] for name, unit in accounts if by_unit[unit]}
        until_us = now_us + int(invocation.deadline_s * 1e6)
        rates = self._rates.needed(known.rates + caller.terms.rates, cost.tokens)
        reservation = Reservation(uuid7(), cost, f"{tenant}.{invocation.agent_id}", until_us, amounts, rates)
        if not self._take(reservation):
            await self._wait_for(reservation)
        return reservation

    def settle(self, reservation: Reservation, spent: tuple[int, int] | None) -> None:
        """End a reservation by what was spent, tokens and micro-dollars; None when nobody said: then it is found out."""
        if self._holder is None or self._journal is None or reservation.reservation_id not in self._holder.reservations:
            return
        if spent is not None:
            by_unit = {"tokens": spent[0], "micro_usd": spent[1], "calls": 0}
            used = {name: min(amount, by_unit[name.rpartition(".")[2]]) for name, amount in reservation.amounts.items()}
            self._close(reservation, used, spent[0])
        elif reservation.amounts:
            self._unheard[reservation.reservation_id] = reservation
        else:
            self._close(reservation, {}, None)

    def use(self, shown: Callable[[str], bool]) -> dict[str, list[dict[str, str | int]]]:
        """Return what this process knows of the accounts and rates whose name is `shown`, as the limiter said last."""
        leases = self._holder.leases if self._holder is not None else {}
        accounts: list[dict[str, str | int]] = [
            {"account": name, "limit": lease.bound, "used": lease.used, "left": max(0, lease.bound - lease.used)}
            for name, lease in sorted(leases.items())
            if lease.heard and shown(name)
        ]
        return {"accounts": accounts, "rates": self._rates.use(shown)}

    def headers(self, who: Principal) -> dict[str, str]:
        """Return the RateLimit headers (IETF draft) of a caller: their rates, and what this process has left of each now."""
        return self._rates.headers(who)

    async def aclose(self) -> None:
        """Give everything back; what is open is looked up by the limiter."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._holder is not None:
            self._holder.give_back(list(self._holder.leases))
            with contextlib.suppress(SovereignError):
                await self._exchange()
        if self._journal is not None:
            self._journal.close()

    def _take(self, reservation: Reservation) -> bool:
        holder, journal = self._holder, self._journal
        if holder is None or journal is None or self._rates.lacking(reservation.rates):
            return False
        if not holder.reserve(reservation.reservation_id, reservation.amounts):
            return False
        self._rates.take(reservation.rates)
        try:
            journal.opened(reservation.reservation_id, reservation.amounts, reservation.agent, reservation.until_us)
        except BaseException:
            holder.settle(reservation.reservation_id, {})
            raise
        if self._rates.low(reservation.rates) or holder.low(reservation.amounts):
            self._wake.set()
        return True

    def _close(self, reservation: Reservation, used: Mapping[str, int], tokens: int | None) -> None:
        """End a reservation by what was used of each account; where the tokens are not known the rate gets none back."""
        name = reservation.reservation_id
        self._unheard.pop(name, None)
        if self._holder is None or self._journal is None or name not in self._holder.reservations:
            return
        try:
            self._journal.closed(name, used)
        except StorageError:
            self._unheard[name] = reservation  # tried again with its fate
            return
        self._holder.settle(name, used)
        if tokens is not None:
            self._rates.give_back(reservation.rates, tokens)
        if self._waiting:
            self._serve()

    async def _wait_for(self, reservation: Reservation) -> None:
        waiter = _Waiter(reservation, asyncio.get_running_loop().create_future())
        ends = time.monotonic() + WAIT_S
        self._waiting.append(waiter)
        self._wake.set()
        try:
            while not self._take(reservation):
                left_s = ends - time.monotonic()
                if left_s <= 0 or (self._holder is not None and refusal(self._holder, reservation.amounts, final=False)):
                    break
                waiter.done = asyncio.get_running_loop().create_future()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiter.done, left_s)
            else:
                return
        finally:
            self._waiting.remove(waiter)
        holder, away = self._holder, "The limiter does not answer, and this process has too little left for the call."
        # The account that is spent, before one that was only not refilled for the call's sake.
        why = (refusal(holder, reservation.amounts, final=final) for final in (False, True)) if holder is not None else ()
        error = next(filter(None, why), None)
        raise error or self._rates.refusal(reservation.rates) or UnavailableError(away, hint="Retry.", retry_after_s=1)

    def _serve(self) -> None:
        """Have those that wait look again, in their order."""
        for waiter in self._waiting:
            if not waiter.done.done():
                waiter.done.set_result(None)

    async def _begin(self, agent: str) -> _Known:
        if self._holder is None:
            async with self._opening:
                if self._holder is None:
                    await self._open()
        known = self._known.get(agent)
        return known if known is not None else await asyncio.shield(self._ask_terms(agent))

    async def _open(self) -> None:
        """Begin as a holder: with a journal whose lock says that this process lives, under an epoch of its own."""
        journal = LeaseJournal(wiring.open_lease_journal(self._settings))
        try:
            epoch = await self._call("open", journal.name, self._settings.node)
        except BaseException:
            journal.close()
            raise
        if self._journal is not None:
            self._journal.close()
        self._holder, self._journal = Holder(epoch), journal
        self._unheard.clear()
        if not self._tasks:
            loops = (self._exchange_for_ever(), self._watch_for_ever(), self._ask_fates_for_ever())
            self._tasks = [asyncio.ensure_future(loop) for loop in loops]

    def _ask_terms(self, agent: str) -> asyncio.Task[_Known]:
        task = self._asking.get(agent)
        if task is None:
            task = self._asking[agent] = asyncio.ensure_future(self._terms_of(agent))
            task.add_done_callback(lambda t: self._asked(agent, t))
        return task

    def _asked(self, agent: str, task: asyncio.Task[_Known]) -> None:
        del self._asking[agent]
        if not task.cancelled() and task.exception() is not None and (known := self._known.get(agent)) is not None:
            known.stale_at = time.monotonic() + 1.0

    async def _terms_of(self, agent: str) -> _Known:
        tenant, _, agent_id = agent.partition(".")
        try:
            terms = Terms.from_json(await self._call("terms", tenant, agent_id))
        except SovereignError as e:
            if e.status == 404:
                self._known.pop(agent, None)
            raise
        self._rebound(terms.bounds)
        while len(self._known) >= MAX_TERMS:
            del self._known[next(iter(self._known))]
        rate = Rate(f"tenant.{tenant}", terms.requests_per_minute, terms.tokens_per_minute)
        known = self._known[agent] = _Known(terms, time.monotonic() + TERMS_S, (rate,))
        return known

    def _rebound(self, bounds: Sequence[Bound]) -> None:
        if self._holder is not None:
            names, _ = accounts_of(bounds, self._clock.now_us())
            self._holder.rebound({name: bound.amount for (name, _), bound in zip(names, bounds, strict=True)})

    async def _exchange_for_ever(self) -> None:
        idle_at = time.monotonic() + IDLE_S
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), SHORT_S if self._waiting else REPORT_S)
            self._wake.clear()
            try:
                if time.monotonic() > idle_at and self._holder is not None:
                    idle_at = time.monotonic() + IDLE_S
                    self._holder.end_idle()
                await self._exchange()
            except SovereignError as e:
                log.warning("the limiter was not heard: %s", e)
                await asyncio.sleep(SHORT_S)
            except Exception:
                log.exception("an exchange with the limiter failed")
                await asyncio.sleep(REPORT_S)
            self._serve()
            if self._waiting:
                # Those whose turn it was have looked; the rest is asked for again, not faster than others can return it.
                await asyncio.sleep(SHORT_S)

    async def _exchange(self) -> None:
        holder, journal = self._holder, self._journal
        if holder is None or journal is None:
            return
        needs: dict[str, int] = {}
        waiting: dict[str, int] = {}
        for waiter in self._waiting:
            amounts = waiter.reservation.amounts
            for name, lack in holder.lacking(amounts).items():
                needs.setdefault(name, lack)
                waiting[name] = waiting.get(name, 0) + amounts[name]
        asked = holder.ask(needs, waiting) or Exchange(holder.epoch, 0, {})
        rates = self._rates.ask(w.reservation.rates for w in self._waiting)
        if not asked.reports and not rates:
            return
        reports = {n: [r.settled, r.returned, r.need, r.want, r.end] for n, r in asked.reports.items()}
        request = {"epoch": asked.epoch, "number": asked.number, "reports": reports, "rates": rates}
        try:
            found = await self._call("exchange", orjson.dumps(request))
        except UnknownHolderError:
            log.warning("this process was taken for dead by the limiter; it begins anew")
            await self._open()
            return
        answers = {name: Answer(*values) for name, values in found["answers"].items()}
        # On record before the account is used again: what was settled of it until here is the limiter's.
        if ended := [n for n, a in answers.items() if asked.reports[n].end and not a.granted]:
            journal.ended(ended)
        holder.apply(found["number"], answers)
        self._rates.apply(found["rates"])

    async def _watch_for_ever(self) -> None:
        while not self._closed:
            try:
                if (holder := self._holder) is not None:
                    names = orjson.loads(await self._remote("watch", holder.epoch))
                    if names and holder.give_back(names):
                        self._wake.set()
            except (RayError, ValueError, TimeoutError, SovereignError):
                self._limiter = None
                await asyncio.sleep(REPORT_S)

    async def _ask_fates_for_ever(self) -> None:
        while not self._closed:
            await asyncio.sleep(FATES_S)
            if not self._unheard:
                continue
            asked = {r.reservation_id: [r.agent, r.until_us, dict(r.amounts)] for r in self._unheard.values()}
            try:
                found: dict[str, dict[str, int]] = await self._call("fates", orjson.dumps(asked))
            except SovereignError as e:
                log.warning("what became of %d calls is asked again: %s", len(asked), e)
                continue
            for name, used in found.items():
                if (reservation := self._unheard.get(name)) is not None:
                    self._close(reservation, used, max((n for x, n in used.items() if x.endswith(".tokens")), default=None))

    async def _call(self, method: str, *arguments: object) -> Any:
        try:
            document = orjson.loads(await asyncio.wait_for(self._remote(method, *arguments), LIMITER_TIMEOUT_S))
        except (RayError, ValueError, TimeoutError) as e:
            self._limiter = None
            raise UnavailableError(
                "The limiter does not answer.", hint="It restarts by itself; retry in a moment.", retry_after_s=1
            ) from e
        if "problem" in document:
            raise from_problem(document["problem"])
        return document["ok"]

    async def _remote(self, method: str, *arguments: object) -> Any:
        if self._limiter is None:
            self._limiter = await asyncio.to_thread(self._find)
        return await getattr(self._limiter, method).remote(*arguments)
