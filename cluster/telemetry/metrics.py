"""The platform's metrics in one process: plain numbers in memory, written to the process's snapshot file by a thread."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster.telemetry.snapshots import MAX_TENANTS, OTHER, TRACE, SnapshotFile, collect, render

if TYPE_CHECKING:
    from cluster.lake.ship_report import ShipReport

__all__ = ["Metrics", "Stage", "render"]

FLUSH_INTERVAL_S = 0.5
# Values that labels other than the tenant may have in one process; they come from the code, so the bound is a safety net.
MAX_WORDS = 100
_SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    120.0,
)


class Stage(StrEnum):
    """The parts of a call on its way through the platform."""

    AUTHENTICATE = "authenticate"
    PARSE = "parse"
    # Where the agent answers, with its wake if it had to be woken.
    RESOLVE = "resolve"
    # From the sending to the agent until its answer, or a stream's first piece, is back; what follows is inside of it.
    CHANNEL = "channel"
    # The wait for the conversation's turn.
    QUEUE = "queue"
    AGENT_RUN = "agent_run"
    TOOL = "tool"
    JOURNAL = "journal"
    # What is left of the answer: writing it out, or the rest of a stream.
    RESPOND = "respond"


_OF_PROCESS: dict[tuple[int, Path, str], Metrics] = {}


class Metrics:
    """Counts and measures for one process. Every method is cheap, never waits, and never raises for what it is told."""

    def __init__(self, directory: Path, component: str) -> None:
        self._file = SnapshotFile(directory, component)
        self._write = threading.Lock()
        self._ended = threading.Event()
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("sovereign_requests", "HTTP requests answered.", ["door", "status"], registry=registry)
        self._calls = Counter("sovereign_calls", "Calls of agents that ended.", ["tenant", "outcome"], registry=registry)
        self._seconds = Histogram("sovereign_call_seconds", "How long calls of agents took.", buckets=_SECONDS, registry=registry)
        self._refusals = Counter("sovereign_refusals", "What was refused.", ["reason"], registry=registry)
        stages = Histogram(
            "sovereign_stage_seconds", "How long a part of a call took.", ["stage"], buckets=_SECONDS, registry=registry
        )
        # Looked up once: a labelled look-up costs more than the observation.
        self._stages: dict[str, Histogram] = {stage.value: stages.labels(stage.value) for stage in Stage}
        self._queue = Gauge("sovereign_queue_depth", "Calls that gateways hold.", registry=registry)
        self._live = Gauge("sovereign_live_agents", "Agents that have a process.", registry=registry)
        self._wakes = Counter("sovereign_wakes", "Agents that were started for a call.", registry=registry)
        self._wake_seconds = Histogram("sovereign_wake_seconds", "How long starts took.", buckets=_SECONDS, registry=registry)
        self._refill_failures = Counter("sovereign_refill_failures", "Warm pools that were not refilled.", registry=registry)
        self._dropped_spans = Counter("sovereign_dropped_spans", "Spans that their sink did not take.", registry=registry)
        self._rows = Counter("sovereign_shipped_rows", "Rows that reached the lake.", ["stream"], registry=registry)
        self._segments = Counter("sovereign_shipped_segments", "Objects that reached the lake.", registry=registry)
        self._backlog = Gauge("sovereign_ship_backlog_bytes", "Journal bytes that wait to be shipped.", registry=registry)
        self._limit = Gauge(
            "sovereign_ship_backlog_limit_bytes", "Journal bytes at which nothing new is admitted.", registry=registry
        )
        self._stuck = Gauge(
            "sovereign_ship_stuck_seconds", "For how long nothing was shipped; 0 while all is well.", registry=registry
        )
        self._journals = Gauge("sovereign_live_journals", "Journals that are being written.", registry=registry)
        self._lost = Counter("sovereign_lost_calls", "Calls of ended processes without a last usage event.", registry=registry)
        self._torn = Counter(
            "sovereign_journal_torn_bytes", "Bytes after the last whole fact of ended journals.", registry=registry
        )
        self._refused_facts = Counter("sovereign_refused_facts", "Facts that are no rows.", registry=registry)
        self._store_failures = Counter("sovereign_store_failures", "Steps in which the store took nothing.", registry=registry)
        self._alarms = Counter(
            "sovereign_integrity_alarms",
            "Journals found changed, and keys in the lake with other rows.",
            ["kind"],
            registry=registry,
        )
        self._known: dict[tuple[str, ...], Counter] = {}
        self._tenants: set[str] = set()
        self._words: dict[str, set[str]] = {}

    @classmethod
    def of_process(cls, directory: Path, component: str) -> Self:
        """Return the metrics of this process, written to `directory` every half second as long as it lives.

        The same ones for every caller, so that a process that is bound to one agent after the other has one file.
        """
        key = (os.getpid(), directory, component)
        if (known := _OF_PROCESS.get(key)) is not None:
            return cast(Self, known)
        metrics = cls(directory, component)
        _OF_PROCESS[key] = metrics
        threading.Thread(target=metrics._flush_for_ever, name="metrics", daemon=True).start()
        atexit.register(metrics.close)
        return metrics

    def request(self, door: str, status: int) -> None:
        """Count an answered HTTP request by its way in ("openai", "native") and its status."""
        key = ("request", door, str(status))
        counter = self._known.get(key)
        if counter is None:
            labels = (self._word("door", door), self._word("status", key[2]))
            counter = self._known[key] = self._requests.labels(*labels)
        counter.inc()

    def stage(self, stage: Stage | str, us: int) -> None:
        """Note that a stage took `us` microseconds; an unknown stage is not noted."""
        histogram = self._stages.get(stage)
        if histogram is not None:
            histogram.observe(us / 1_000_000)

    def call(self, tenant: str, outcome: str, latency_us: int, trace_id: str = "") -> None:
        """Count a call of an agent that ended, and how long it took in microseconds; `trace_id` if it is traced."""
        example = {TRACE: trace_id} if trace_id else None
        key = ("call", tenant, outcome)
        counter = self._known.get(key)
        if counter is None:
            if tenant not in self._tenants and len(self._tenants) >= MAX_TENANTS:
                # Not remembered by its own name: that would be as unbounded as a label.
                self._calls.labels(OTHER, self._word("outcome", outcome)).inc()
                self._seconds.observe(latency_us / 1_000_000, example)
                return
            self._tenants.add(tenant)
            counter = self._calls.labels(tenant, self._word("outcome", outcome))
            if len(self._known) < 10 * MAX_TENANTS:
                self._known[key] = counter
        counter.inc()
        self._seconds.observe(latency_us / 1_000_000, example)

    def refused(self, reason: str) -> None:
        """Count a refusal by its reason: an error's code or a grant's refusal."""
        self._refusals.labels(self._word("reason", reason)).inc()

    def queue_depth(self, calls: int) -> None:
        """Say how many calls this process holds now."""
        self._queue.set(calls)

    def live_agents(self, agents: int) -> None:
        """Say how many agents have a process now."""
        self._live.set(agents)

    def woken(self, us: int | None = None) -> None:
        """Count a start of an agent, and how long it took in microseconds if that is known."""
        self._wakes.inc()
        if us is not None:
            self._wake_seconds.observe(us / 1_000_000)

    def refill_failed(self) -> None:
        """Count a refill of the warm pool that was not to be had: the next starts are cold."""
        self._refill_failures.inc()

    def spans_dropped(self, count: int) -> None:
        """Count spans that nobody will see."""
        self._dropped_spans.inc(count)

    def shipped(self, step: ShipReport) -> None:
        """Note what a step of the shipper did."""
        self._rows.labels("usage").inc(step.usage_rows)
        self._rows.labels("audit").inc(step.audit_rows)
        self._segments.inc(step.segments)
        self._backlog.set(step.backlog_bytes)
        self._journals.set(step.live_journals)
        self._lost.inc(step.lost_events)
        self._torn.inc(step.torn_bytes)
        self._refused_facts.inc(step.refused_facts)
        self._store_failures.inc(bool(step.store_error))
        self._alarms.labels("broken_journal").inc(step.broken_journals)
        self._alarms.labels("conflict").inc(step.conflicts)

    def waiting(self, backlog_bytes: int, limit_bytes: int, stuck_s: float) -> None:
        """Say how many bytes wait for the lake now, how many may, and for how long nothing was shipped."""
        self._backlog.set(backlog_bytes)
        self._limit.set(limit_bytes)
        self._stuck.set(stuck_s)

    def flush(self) -> None:
        """Write the snapshot now; a disk that is full or gone is left for the next time."""
        with self._write, contextlib.suppress(OSError):
            self._file.write(collect(self._registry))

    def close(self) -> None:
        """Write the last snapshot and stop to write."""
        self._ended.set()
        self.flush()

    def _word(self, label: str, value: str) -> str:
        words = self._words.setdefault(label, set())
        if value not in words:
            if len(words) >= MAX_WORDS:
                return OTHER
            words.add(value)
        return value

    def _flush_for_ever(self) -> None:
        while True:
            self.flush()
            if self._ended.wait(FLUSH_INTERVAL_S):
                return
