"""What a job uses, measured: of a command and everything that it starts, or of a process that measures itself."""

from __future__ import annotations

import atexit
import logging
import resource
import sys
import threading
from typing import Final

import psutil

from actors.ray_internals import JOB_ID_KEY, amend_job_metadata, job_metadata
from cluster import wiring
from cluster.clock import SystemClock
from cluster.errors import SovereignError
from cluster.jobs.job import PREFIX, Job
from cluster.jobs.job_books import JobBooks
from cluster.journal.usage_event import Outcome
from cluster.settings import Settings

log = logging.getLogger(__name__)

# What a job that is killed with its measurer can have used unrecorded.
INTERIM_S: Final = 10.0


def open_books(settings: Settings, job: Job, job_id: str) -> JobBooks:
    """Return the books of one job, in a journal of their own; raises StorageError or UnavailableError."""
    journal = wiring.open_journal(settings, wiring.process_writer_id("job"))
    return JobBooks(job, job_id, journal, SystemClock())


def children_cpu_us() -> int:
    """Return the CPU of everything that this process started, what ended and what still runs, in microseconds.

    Of what still runs the kernel tells whole ticks (10 ms); of what was waited for, microseconds.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])  # its own, and that of the children that it has waited for
        except psutil.Error:
            continue
    return int(seconds * 1e6)


def running_job() -> Job | None:
    """Return the job that this process belongs to, or None; raises InvalidRequestError for metadata that can't be taken."""
    metadata = job_metadata()
    return None if metadata is None else Job.from_metadata(metadata)


def meter_this_process(settings: Settings, job: Job) -> Job:
    """Measure this process and what it starts until it exits, and return the job with its run.

    For a job that nothing else measures: one of `ray job submit`. Processes that it starts later find that it is measured.
    """
    metadata = job_metadata() or {}
    books = open_books(settings, job, metadata.get(JOB_ID_KEY, "unknown"))
    books.begin()
    ending = threading.Event()

    def keep() -> None:
        while not ending.wait(INTERIM_S):
            try:
                books.interim(_own_cpu_us() + children_cpu_us())
            except SovereignError as e:
                log.warning("what this job used is not written yet: %s", e)

    keeper = threading.Thread(target=keep, name="job-meter", daemon=True)
    keeper.start()

    def end() -> None:
        ending.set()
        keeper.join()
        # Python leaves the exception that ends a script there; an exit code is not known to the process itself.
        outcome = Outcome.FAILED if hasattr(sys, "last_type") else Outcome.OK
        books.end(outcome, _own_cpu_us() + children_cpu_us(), None)
        books.close()

    atexit.register(end)
    amend_job_metadata({PREFIX + "run": books.invocation_id})
    return Job(job.principal, books.invocation_id, job.budget_usd, job.labels)


def _own_cpu_us() -> int:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return int((own.ru_utime + own.ru_stime) * 1e6)
