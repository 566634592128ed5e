"""A job's books: one fact when it begins, one now and then while it runs, one when it ends."""

from __future__ import annotations

from typing import Any

from cluster.clock import Clock
from cluster.identity.ids import uuid7
from cluster.jobs.job import Job
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome
from cluster.journal.fact import Fact, Stream
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter


class JobBooks:
    """The journal of one job. What it is told is the CPU that the job used in all until now; it writes the differences."""

    def __init__(self, job: Job, job_id: str, journal: JournalWriter, clock: Clock) -> None:
        self._job = job
        self._job_id = job_id
        self._journal = journal
        self._clock = clock
        # Not the run: whoever submits could say the same run twice, and the second row would count as the first.
        self._event_id = uuid7()
        self._invocation_id = job.run or self._event_id
        self._started_us = clock.now_us()
        self._started_mono_us = clock.monotonic_us()
        self._written_cpu_us = 0

    @property
    def invocation_id(self) -> str:
        """The run: the invocation id of this job's rows, and the parent of its calls."""
        return self._invocation_id

    def begin(self) -> None:
        """Write the job down; it ends settled or lost from here on. Raises StorageError, and then nothing may run."""
        who = self._job.principal
        admitted = CallAdmitted(
            event_id=self._event_id,
            start_time=self._started_us,
            tenant_id=str(who.tenant),
            project_id=str(who.project),
            agent_id=agent_id_of(self._job_id),
            agent_version="",
            invocation_id=self._invocation_id,
            reservation_id=self._event_id,
            model="",
        )
        budget = None if self._job.budget_usd is None else f"{self._job.budget_usd:f}"
        detail = {"run": self._invocation_id, "budget_usd": budget, "labels": dict(self._job.labels)}
        started = self._audit(AuditAction.JOB_START, AuditOutcome.ALLOWED, detail)
        self._journal.append_many([Fact(Stream.CALL, admitted.to_body()), started])

    def interim(self, cpu_us: int) -> None:
        """Write what was used since the last time, of `cpu_us` in all; nothing if nothing was."""
        used_us = cpu_us - self._written_cpu_us
        if used_us > 0:
            event = self._usage(UsageKind.INTERIM, Outcome.OK, used_us)
            self._journal.append(Fact(Stream.USAGE, event.to_body()))
            self._written_cpu_us = cpu_us

    def end(self, outcome: Outcome, cpu_us: int, exit_code: int | None) -> None:
        """Write the last facts: the rest of what was used, and how it ended."""
        event = self._usage(UsageKind.FINAL, outcome, max(0, cpu_us - self._written_cpu_us))
        how = AuditOutcome.DONE if outcome is Outcome.OK else AuditOutcome.FAILED
        detail = {"run": self._invocation_id, "outcome": outcome.value, "exit_code": exit_code, "cpu_us": cpu_us}
        ended = self._audit(AuditAction.JOB_END, how, detail)
        self._journal.append_many([Fact(Stream.USAGE, event.to_body()), ended])

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _usage(self, kind: UsageKind, outcome: Outcome, cpu_us: int) -> UsageEvent:
        who = self._job.principal
        return UsageEvent(
            event_id=self._event_id if kind is UsageKind.FINAL else uuid7(),
            kind=kind,
            event_time=self._clock.now_us(),
            start_time=self._started_us,
            tenant_id=str(who.tenant),
            project_id=str(who.project),
            agent_id=agent_id_of(self._job_id),
            agent_version="",
            invocation_id=self._invocation_id,
            reservation_id=self._event_id,
            model="",
            outcome=outcome,
            # The machine was used, however the job ended.
            billable=True,
            cpu_us=cpu_us,
            latency_us=self._clock.monotonic_us() - self._started_mono_us if kind is UsageKind.FINAL else 0,
        )

    def _audit(self, action: AuditAction, outcome: AuditOutcome, detail: dict[str, Any]) -> Fact:
        who = self._job.principal
        event = AuditEvent.new(
            self._clock,
            action,
            outcome,
            actor=who.subject,
            tenant_id=str(who.tenant),
            object_id=self._job_id,
            detail=detail,
        )
        return Fact(Stream.AUDIT, event.to_body())


def agent_id_of(job_id: str) -> str:
    """Return what stands in the column `agent_id` of a job's rows; the colon keeps it apart from every agent's name."""
    return f"job:{job_id}"
