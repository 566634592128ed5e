"""An agent's books: what it writes to its journal, and when. Two facts a call, one for each refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.channel.incoming_call import Why
from actors.start_order import StartOrder
from actors.wire import CallOrder, Usage
from cluster.agents.budget import Budget
from cluster.agents.call import Call, CallMeter
from cluster.agents.cpu_accounting import CpuAccountant
from cluster.clock import Clock
from cluster.errors import CancelledCallError, DeadlineExceededError, SovereignError, StorageError
from cluster.identity.ids import uuid7
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.gate import JournalGate
from cluster.journal.owed import OwedFacts
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter
from cluster.limits.call_budget import CallBudget
from cluster.limits.price_card import Quantities
from cluster.limits.worst_case import cpu_time_at_most
from cluster.telemetry.metrics import Metrics, Stage

log = logging.getLogger(__name__)

# Between tries to write what the disk did not take.
PAY_INTERVAL_S = 1.0
# How long the call that woke an agent may take to reach it.
FIRST_CALL_US = 5_000_000
# How many calls say how long calls take now.
LAST_CALLS = 64
# A call under which the process closes is as lost as one under which it dies.
_STOPPED: dict[Why, Outcome] = {"deadline": Outcome.DEADLINE, "closing": Outcome.LOST}
_LIMITS = ("iteration_limit", "out_of_memory", "payload_too_large", "call_budget_exceeded")


class AgentBooks:
    """The journal of one agent generation, and the CPU and metrics that its calls are charged with."""

    def __init__(self, order: StartOrder, journal: JournalWriter, metrics: Metrics, clock: Clock, gate: JournalGate) -> None:
        self.order = order
        self._journal = journal
        self._gate = gate
        # What the disk did not take though it happened; empty while all is well.
        self._owed = OwedFacts(journal)
        self._paying: asyncio.TimerHandle | None = None
        self.metrics = metrics
        self.clock = clock
        self.cpu = CpuAccountant()
        # Calls that were admitted and are not settled.
        self.running = 0
        # Calls that were settled.
        self.ended = 0
        # What the last ones took.
        self._took_us: deque[int] = deque(maxlen=LAST_CALLS)
        # A fresh agent was started for a call that is on its way, so it is not idle yet.
        self._quiet_since_us = clock.monotonic_us() + FIRST_CALL_US

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0 while one runs, or while its last fact is not written."""
        if self.running or self._owed:
            return 0.0
        return max(0.0, (self.clock.monotonic_us() - self._quiet_since_us) / 1e6)

    def admit(self, fact: Fact) -> None:
        """Write that a call was admitted; raises JournalFullError or StorageError, and then there is no call."""
        self._gate.check()
        self._owed.pay()
        self._journal.append(fact)
        self.running += 1

    def settle(self, fact: Fact, unheard: Callable[[], Fact]) -> None:
        """Write how a call ended. Raises StorageError when the disk refuses: then `unheard` is written when there is room."""
        try:
            self._owed.write(fact, unheard)
        except StorageError:
            self._pay_later()
            raise

    @property
    def p95_s(self) -> float:
        """What 95 of 100 of the last calls took at most; 0 before the first."""
        return sorted(self._took_us)[int(len(self._took_us) * 0.95)] / 1e6 if self._took_us else 0.0

    def left(self, took_us: int) -> None:
        """Note that a call was settled."""
        self._took_us.append(took_us)
        self.running -= 1
        self.ended += 1
        self._quiet_since_us = self.clock.monotonic_us()

    def refused_call(self, reason: str) -> None:
        """Record that a call frame was refused before it reached the agent."""
        self.metrics.refused(reason)
        self._refused(AuditAction.CHANNEL_REFUSE, reason)

    def refused_tool(self, tool: str, reason: str) -> None:
        """Record that a tool call was refused before it ran."""
        self.metrics.refused("tool")
        self._refused(AuditAction.TOOL_REFUSE, reason, {"tool": tool[:80]})

    def over_limit(self, reason: str) -> None:
        """Record that this process ends itself because it took more than it declared; for any thread, and never raises."""
        with contextlib.suppress(StorageError):  # it ends in any case
            self._owed.note(self._event(AuditAction.LIFECYCLE_TRANSITION, AuditOutcome.FAILED, reason))

    def close(self) -> None:
        """Flush metrics and close the journal."""
        if self._paying is not None:
            self._paying.cancel()
        try:
            self._owed.pay()
        except StorageError as e:
            log.warning("%d facts are lost with this process; their calls end as lost: %s", len(self._owed), e.detail)
        self.metrics.flush()
        self._journal.close()

    def _pay_later(self) -> None:
        if self._paying is None:
            log.error("the disk did not take a fact that must not be lost; it is tried again until it does")
            self._paying = asyncio.get_running_loop().call_later(PAY_INTERVAL_S, self._pay)

    def _pay(self) -> None:
        try:
            self._owed.pay()
        except StorageError:
            self._paying = asyncio.get_running_loop().call_later(PAY_INTERVAL_S, self._pay)
        else:
            self._paying = None
            log.warning("the disk took what it had refused")

    def _refused(self, action: AuditAction, reason: str, detail: dict[str, Any] | None = None) -> None:
        self._owed.note(self._event(action, AuditOutcome.DENIED, reason, detail))
        if self._owed:
            self._pay_later()

    def _event(self, action: AuditAction, outcome: AuditOutcome, reason: str, detail: dict[str, Any] | None = None) -> Fact:
        event = AuditEvent.new(
            self.clock,
            action,
            outcome,
            tenant_id=self.order.tenant,
            actor=self.order.writer_id,
            object_id=str(self.order.record.spec.agent_id),
            reason=reason,
            detail=detail,
        )
        return Fact(Stream.AUDIT, event.to_body())


class CallBooks:
    """The books of one call: opened with one fact, closed with one fact."""

    __slots__ = ("_books", "_event_id", "_order", "_started_mono_us", "_started_us", "_used", "call", "meter")

    def __init__(self, books: AgentBooks, order: CallOrder, deadline_s: float) -> None:
        self._books = books
        self._order = order
        self._event_id = uuid7()
        self._started_us = books.clock.now_us()
        self._started_mono_us = books.clock.monotonic_us()
        self._used: Usage | None = None
        self.meter = CallMeter(model=books.order.record.spec.model)
        self.call = Call(
            invocation_id=order.invocation_id,
            messages=order.messages,
            thread_id=order.thread_id,
            max_output_tokens=order.max_output_tokens,
            temperature=order.temperature,
            model_settings=order.model_settings,
            client_tools=order.client_tools,
            response_schema=order.response_schema,
            instructions=order.instructions,
            after=order.after,
            request_id=order.request_id,
            project_id=order.project_id,
            depth=order.depth,
            ends_ns=time.monotonic_ns() + int(deadline_s * 1e9),
            budget=_budget(books.order, order, deadline_s),
            reservation_id=order.reservation_id,
        )

    def admit(self) -> None:
        """Write the first fact: from here on the call ends settled or lost, whatever happens to this process."""
        books, order = self._books, self._order
        admitted = CallAdmitted(
            event_id=self._event_id,
            start_time=self._started_us,
            tenant_id=books.order.tenant,
            project_id=order.project_id,
            agent_id=str(books.order.record.spec.agent_id),
            agent_version=books.order.record.version,
            invocation_id=order.invocation_id,
            parent_invocation_id=order.parent_invocation_id or None,
            trace_id=order.trace_id or None,
            reservation_id=order.reservation_id or self._event_id,
            model=books.order.record.spec.model,
        )
        books.admit(Fact(Stream.CALL, admitted.to_body()))
        books.cpu.enter(self._event_id)

    def used(self) -> Usage:
        """End the measuring of an admitted call and return what it used; the same ever after."""
        if self._used is None:
            books, meter = self._books, self.meter
            self._used = Usage(
                tokens_input_uncached=meter.tokens_input_uncached,
                tokens_cache_read=meter.tokens_cache_read,
                tokens_cache_write=meter.tokens_cache_write,
                tokens_output=meter.tokens_output,
                tokens_reasoning=meter.tokens_reasoning,
                tool_calls=meter.tool_calls,
                cpu_us=books.cpu.leave(self._event_id) + meter.child_cpu_us,
                latency_us=books.clock.monotonic_us() - self._started_mono_us,
            )
        return self._used

    def spent(self) -> tuple[int, int]:
        """What it took of the reservation, with what its sub-calls took; for an admitted call that has ended."""
        used = self.used()
        if self.call.budget is None:
            return (0, 0)
        spent = self.call.budget.spent(quantities(used))
        return spent.tokens, spent.micro_usd

    def settle(self, outcome: Outcome) -> None:
        """Write the last fact, once, before the caller hears anything. Who was cut off by the platform does not pay."""
        books, order, meter, used = self._books, self._order, self.meter, self.used()
        books.left(used.latency_us)
        now_us = books.clock.now_us()
        resources = books.order.record.spec.resources
        event = UsageEvent(
            event_id=self._event_id,
            kind=UsageKind.FINAL,
            event_time=now_us,
            start_time=self._started_us,
            tenant_id=books.order.tenant,
            project_id=order.project_id,
            agent_id=str(books.order.record.spec.agent_id),
            agent_version=books.order.record.version,
            invocation_id=order.invocation_id,
            parent_invocation_id=order.parent_invocation_id or None,
            trace_id=order.trace_id or None,
            reservation_id=order.reservation_id or self._event_id,
            model=meter.model,
            outcome=outcome,
            billable=outcome is Outcome.OK or (outcome is not Outcome.LOST and meter.model_calls > 0),
            tokens_input_uncached=used.tokens_input_uncached,
            tokens_cache_read=used.tokens_cache_read,
            tokens_cache_write=used.tokens_cache_write,
            tokens_output=used.tokens_output,
            tokens_reasoning=used.tokens_reasoning,
            tool_calls=used.tool_calls,
            cpu_us=used.cpu_us,
            reserved_cpu_milli_ms=resources.cpu_milli * used.latency_us // 1_000,
            mem_mib_ms=(resources.memory_bytes >> 20) * used.latency_us // 1_000,
            latency_us=used.latency_us,
            queue_us=order.queue_us,
            provider_usage_raw=json.dumps(meter.provider_usage) if meter.provider_usage else None,
        )
        before_us = books.clock.monotonic_us()
        # For those who reserved for it and do not hear its answer; no part of the row.
        spent = {"spent": self.spent()} if self.call.budget is not None else {}
        books.settle(Fact(Stream.USAGE, event.to_body() | spent), lambda: Fact(Stream.USAGE, _unheard(event).to_body() | spent))
        books.metrics.stage(Stage.JOURNAL, books.clock.monotonic_us() - before_us)
        books.metrics.stage(Stage.QUEUE, meter.turn_wait_us)
        books.metrics.stage(Stage.AGENT_RUN, used.latency_us)
        if used.tool_calls:
            books.metrics.stage(Stage.TOOL, meter.tools_us)
        books.metrics.call(books.order.tenant, outcome.value, used.latency_us, order.recorded_trace)


def _budget(started: StartOrder, order: CallOrder, deadline_s: float) -> CallBudget | None:
    reserved = Budget(order.budget_tokens, order.budget_micro_usd)
    if not reserved:
        return None
    return CallBudget(started.price, reserved, cpu_us=cpu_time_at_most(deadline_s, started.record.spec.resources.cpu_milli))


def quantities(used: Usage) -> Quantities:
    """Return what a call used as what prices are for."""
    return Quantities(
        used.tokens_input_uncached,
        used.tokens_cache_read,
        used.tokens_cache_write,
        used.tokens_output,
        used.tokens_reasoning,
        used.tool_calls,
        used.cpu_us,
    )


def _unheard(event: UsageEvent) -> UsageEvent:
    """Return what to write later of a call whose end the disk does not take now: its caller gets an error, and no answer."""
    return replace(event, outcome=Outcome.LOST, billable=False) if event.outcome is Outcome.OK else event


def outcome_of(error: BaseException, why: Why) -> Outcome:
    """Return how a call ended that ended with `error`; `why` is what the channel stopped it for, if it did."""
    if isinstance(error, (asyncio.CancelledError, CancelledCallError)):
        return _STOPPED.get(why, Outcome.CANCELLED)
    if isinstance(error, DeadlineExceededError):
        return Outcome.DEADLINE
    if isinstance(error, SovereignError) and error.code in _LIMITS:
        return Outcome.LIMIT
    return Outcome.FAILED
