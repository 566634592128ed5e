"""An agent's books: what it writes to its journal, and when. Two facts a call, one for each refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

from actors.start_order import StartOrder
from actors.wire import CallOrder, Usage
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
from cluster.telemetry.metrics import Metrics, Stage

log = logging.getLogger(__name__)

# Between tries to write what the disk did not take.
PAY_INTERVAL_S = 1.0


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
        self._quiet_since_us = clock.monotonic_us()

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0 while one runs, or while its last fact is not written."""
        return 0.0 if self.running or self._owed else (self.clock.monotonic_us() - self._quiet_since_us) / 1e6

    def admit(self, fact: Fact) -> None:
        """Write that a call was admitted; raises JournalFullError or StorageError, and then there is no call."""
        self._gate.check()
        self._owed.pay()
        self._journal.append(fact)
        self.running += 1

    def settle(self, fact: Fact) -> None:
        """Write how a call ended. Raises StorageError when the disk refuses: it is written as soon as there is room."""
        try:
            self._owed.write(fact)
        except StorageError:
            self._pay_later()
            raise

    def left(self) -> None:
        """Note that a call was settled."""
        self.running -= 1
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

    __slots__ = ("_books", "_event_id", "_order", "_started_mono_us", "_started_us", "call", "meter")

    def __init__(self, books: AgentBooks, order: CallOrder) -> None:
        self._books = books
        self._order = order
        self._event_id = uuid7()
        self._started_us = books.clock.now_us()
        self._started_mono_us = books.clock.monotonic_us()
        self.meter = CallMeter(model=books.order.record.spec.model)
        self.call = Call(
            invocation_id=order.invocation_id,
            messages=order.messages,
            thread_id=order.thread_id,
            max_output_tokens=order.max_output_tokens,
            temperature=order.temperature,
        )

    @property
    def elapsed_us(self) -> int:
        """Microseconds since the call arrived."""
        return self._books.clock.monotonic_us() - self._started_mono_us

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

    def settle(self, outcome: Outcome) -> Usage:
        """Write the last fact, before the caller hears anything, and return what it says was used."""
        books, order, meter = self._books, self._order, self.meter
        books.left()
        now_us = books.clock.now_us()
        latency_us = self.elapsed_us
        cpu_us = books.cpu.leave(self._event_id) + meter.child_cpu_us
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
            billable=outcome is Outcome.OK or meter.model_calls > 0,
            tokens_input_uncached=meter.tokens_input_uncached,
            tokens_cache_read=meter.tokens_cache_read,
            tokens_cache_write=meter.tokens_cache_write,
            tokens_output=meter.tokens_output,
            tokens_reasoning=meter.tokens_reasoning,
            tool_calls=meter.tool_calls,
            cpu_us=cpu_us,
            reserved_cpu_milli_ms=resources.cpu_milli * latency_us // 1_000,
            mem_mib_ms=(resources.memory_bytes >> 20) * latency_us // 1_000,
            latency_us=latency_us,
            queue_us=order.queue_us,
            provider_usage_raw=json.dumps(meter.provider_usage) if meter.provider_usage else None,
        )
        before_us = books.clock.monotonic_us()
        books.settle(Fact(Stream.USAGE, event.to_body()))
        books.metrics.stage(Stage.JOURNAL, books.clock.monotonic_us() - before_us)
        books.metrics.stage(Stage.AGENT_RUN, latency_us)
        books.metrics.call(books.order.tenant, outcome.value, latency_us)
        return Usage(
            tokens_input_uncached=meter.tokens_input_uncached,
            tokens_cache_read=meter.tokens_cache_read,
            tokens_cache_write=meter.tokens_cache_write,
            tokens_output=meter.tokens_output,
            tokens_reasoning=meter.tokens_reasoning,
            tool_calls=meter.tool_calls,
            cpu_us=cpu_us,
            latency_us=latency_us,
        )


def outcome_of(error: BaseException, *, past_deadline: bool) -> Outcome:
    """Return how a call ended that ended with `error`."""
    if isinstance(error, asyncio.CancelledError):
        return Outcome.DEADLINE if past_deadline else Outcome.CANCELLED
    if isinstance(error, DeadlineExceededError):
        return Outcome.DEADLINE
    if isinstance(error, CancelledCallError):
        return Outcome.CANCELLED
    if isinstance(error, SovereignError) and error.code in ("iteration_limit", "out_of_memory"):
        return Outcome.LIMIT
    return Outcome.FAILED
