"""Submits jobs to a running cluster, follows and stops them: Ray's own client, with identity and a meter added.

    job = Job(principal, budget_usd=Decimal("12.50"), labels={"team": "research"})
    with JobClient(settings) as jobs:
        job_id = jobs.submit(job, ["python", "research.py"], working_dir=Path("."))

It needs the cluster's token, which is read from the file that only the cluster's user can read, and goes nowhere but into
the headers of requests to this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from actors.ray_internals import nothing_but_loopback, use_token_on_loopback
from actors.run_state import read_state
from cluster.errors import ConflictError, FieldError, InvalidRequestError, NotFoundError, UnavailableError
from cluster.identity.ids import Identifier, uuid7
from cluster.jobs.job import Job, entrypoint_of
from cluster.settings import PROJECT_ROOT, Settings

RUNNER: Final = ("python", "-P", "-m", "actors.job_runner", "--")
# Between the last line of its log and a job's end; Ray looks ten times a second.
POLL_S: Final = 0.1
# A job has 2 s to end by itself, and Ray kills what is left of it after 3 s.
STOP_TIMEOUT_S: Final = 30.0
# Folders and modules of this name in a working_dir would stand in for the platform's own, in the job and in its measurer.
ROOMS: Final = ("actors", "cluster")
# It becomes a part of a URL.
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as Ray knows it; `status` is pending, running, succeeded, failed or stopped. Times are Unix milliseconds."""

    job_id: str
    status: str
    message: str
    entrypoint: str
    exit_code: int | None
    start_time: int | None
    end_time: int | None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ("succeeded", "failed", "stopped")


class JobClient:
    """The jobs of one cluster."""

    def __init__(self, settings: Settings) -> None:
        """Connect to the job server of the cluster that runs under this home; raises UnavailableError when there is none."""
        state = read_state(settings)
        if state is None or not state.alive or state.status != "ready":
            raise UnavailableError(f"No cluster runs under {settings.home}.", hint="Start one with `sovereign up`.")
        use_token_on_loopback(settings.secret_dir / "ray-token")
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of each log that it closes
        self._host = settings.host
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        with self._asking():
            self._client: Any = JobSubmissionClient(f"http://{host}:{state.ports['dashboard']}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing stays open between requests."""

    def submit(self, job: Job, command: Sequence[str], *, working_dir: Path | None = None, job_id: str | None = None) -> str:
        """Send the command and return the job's id at once.

        Raises InvalidRequestError for a command or labels that seem to hold a secret, and for a working_dir that can't
        be sent; ConflictError when there is a job of this id.
        """
        name = Identifier.parse(job_id, "job id") if job_id is not None else f"run-{secrets.token_hex(6)}"
        metadata = replace(job, run=uuid7()).to_metadata()
        entrypoint_of(command)
        line = entrypoint_of([*RUNNER, *command])
        runtime_env = {} if working_dir is None else {"working_dir": str(_sendable(working_dir))}
        with self._asking():
            if any(j.submission_id == name for j in self._client.list_jobs()):
                raise ConflictError(f"There is a job {name} already.", hint="Choose another id, or leave it out.")
            submitted: str = self._client.submit_job(
                entrypoint=line, submission_id=name, runtime_env=runtime_env, metadata=metadata
            )
        return submitted

    def show(self, job_id: str) -> JobState:
        """Return the job; raises NotFoundError."""
        unknown = NotFoundError(f"There is no job {job_id[:80]!r}.", hint="See them all with `sovereign job list`.")
        if not _JOB_ID.fullmatch(job_id):
            raise unknown
        with self._asking():
            try:
                return _state(self._client.get_job_info(job_id))
            except RuntimeError as e:
                if "status code 404" in str(e):
                    raise unknown from None
                raise

    def list(self) -> list[JobState]:
        """Return all jobs that were submitted since the cluster started, oldest first."""
        with self._asking():
            found = [_state(j) for j in self._client.list_jobs() if j.type.value == "SUBMISSION"]
        return sorted(found, key=lambda s: (s.start_time or 0, s.job_id))

    def stop(self, job_id: str) -> JobState:
        """Ask the job to end, wait until it has, and return it; one that has ended is left as it is.

        Raises NotFoundError, and UnavailableError when it has not ended within STOP_TIMEOUT_S: Ray answers before it does it.
        """
        if not (state := self.show(job_id)).ended:
            with self._asking():
                self._client.stop_job(job_id)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while not (state := self.show(job_id)).ended:
                if time.monotonic() >= deadline:
                    raise UnavailableError(
                        f"Job {job_id} was asked to end {STOP_TIMEOUT_S:.0f} s ago and is still {state.status}.",
                        hint="Ask again; if it goes on, `sovereign logs` has what Ray says, and `sovereign down` ends every job.",
                    )
                time.sleep(POLL_S)
        return state

    def wait(self, job_id: str) -> JobState:
        """Return the job when it has ended."""
        while not (state := self.show(job_id)).ended:
            time.sleep(POLL_S)
        return state

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobState:
        """Hand on what the job prints, as it prints it, and return the job when it has ended."""

        async def tail() -> None:
            async for piece in self._client.tail_job_logs(job_id):
                write(piece)

        with self._asking():
            asyncio.run(tail())
        return self.wait(job_id)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Keep the token on this machine, and say in our own words that the job server is away."""
        with nothing_but_loopback(self._host):
            try:
                yield
            except (ConnectionError, RuntimeError, OSError) as e:
                raise UnavailableError(
                    f"Ray's job server did not do it: {str(e)[:500]}", hint="See `sovereign status` and `sovereign logs`."
                ) from e


def _state(details: Any) -> JobState:
    return JobState(
        job_id=details.submission_id,
        status=details.status.value.lower(),
        message=details.message or "",
        entrypoint=details.entrypoint,
        exit_code=details.driver_exit_code,
        start_time=details.start_time,
        end_time=details.end_time,
        metadata=dict(details.metadata or {}),
    )


def _sendable(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    why = ""
    if not folder.is_dir():
        why = f"{folder} is no folder"
    elif folder != PROJECT_ROOT and (hiding := [n for room in ROOMS for n in (room, f"{room}.py") if (folder / n).exists()]):
        why = f"{folder} has {hiding[0]}, which would hide the platform's package of that name; rename it"
    if why:
        raise InvalidRequestError("The working folder can't be sent.", errors=[FieldError("working_dir", why)])
    return folder
