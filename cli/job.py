"""`sovereign job`: submit work that runs inside the cluster, as whoever an API key belongs to; list, show, stop."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.http import api_key_of
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, printable, table
from cluster.errors import JobFailedError, UnauthenticatedError

if TYPE_CHECKING:
    from rich.console import Console

    from actors.jobs import JobState
    from cluster.identity.principal import Principal
    from cluster.settings import Settings

app = typer.Typer(
    help="Submit, list, show and stop jobs: programs that run inside the cluster. A job is as powerful as the operator.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


# What follows the command's first word is the command's own, options too.
@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.", show_default=False)
    ],
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder that is sent along and that the command runs in.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label (may be given more than once).", show_default=False)
    ] = None,
    budget_usd: Annotated[
        str | None, typer.Option(help="What it may cost, for the record: nothing stops the job at it yet.", show_default=False)
    ] = None,
    job_id: Annotated[str | None, typer.Option("--id", help="Its id [default: a new one].", show_default=False)] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the API key to submit as [default: the home's first key].", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Print what it prints and end as it ends.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a command inside the cluster, as the owner of an API key, and measure it."""
    from cluster.jobs.job import Job, entrypoint_of, parse_budget, parse_labels

    settings = settings_of(home)
    budget = parse_budget(budget_usd) if budget_usd is not None else None
    labels = parse_labels(label or [])
    entrypoint_of(command)
    from actors.jobs import JobClient

    with JobClient(settings) as jobs:
        job = Job(_principal(settings, key_file), budget_usd=budget, labels=labels)
        submitted = jobs.submit(job, command, working_dir=working_dir, job_id=job_id)
        if not wait:
            data = _document(jobs.show(submitted))
            OUTPUT.result(data, lambda console: console.print(f"{submitted} is submitted.", markup=False, highlight=False))
            return
        OUTPUT.note(f"{submitted} is submitted; it goes on when you leave. Stop it with: sovereign job stop {submitted}")
        ended = jobs.follow(submitted, _write)
    if ended.status != "succeeded":
        raise _failure(ended)
    OUTPUT.result(_document(ended), lambda _: OUTPUT.note(f"{submitted} succeeded"))


@app.command("list")
def list_jobs(home: Home = None, as_json: Json = False) -> None:
    """List the jobs that were submitted since the cluster started, of all tenants, oldest first."""
    from actors.jobs import JobClient

    with JobClient(settings_of(home)) as jobs:
        found = [_document(state) for state in jobs.list()]
    OUTPUT.result({"jobs": found}, lambda console: _render(console, found))


@app.command()
def show(job_id: JobId, home: Home = None, as_json: Json = False) -> None:
    """Show one job: whose it is, and how it is."""
    from actors.jobs import JobClient

    with JobClient(settings_of(home)) as jobs:
        found = _document(jobs.show(job_id))
    OUTPUT.result(found, lambda console: console.print_json(data=found))


@app.command()
def stop(job_id: JobId, home: Home = None, as_json: Json = False) -> None:
    """End a job: asked first, killed after 2 s. One that has ended stays as it is."""
    from actors.jobs import JobClient

    with JobClient(settings_of(home)) as jobs:
        found = _document(jobs.stop(job_id))
    words = f"{job_id} is {found['status']}."
    OUTPUT.result(found, lambda console: console.print(words, markup=False, highlight=False))


def _principal(settings: Settings, key_file: Path | None) -> Principal:
    """Return whose key it is; raises UnauthenticatedError when it can't be read or does not hold."""
    from cluster import wiring

    try:
        key = api_key_of(settings) if key_file is None else key_file.read_text().strip()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UnauthenticatedError(f"The API key in {key_file} can't be read: {reason}.") from None
    try:
        return wiring.build_authenticator(settings).authenticate(f"Bearer {key}")
    except UnauthenticatedError:
        where = key_file or settings.secret_dir / "api-key"
        raise UnauthenticatedError(
            f"What is in {where} is no API key of this cluster, or one that was revoked or has expired."
        ) from None


def _write(text: str) -> None:
    """Hand on what the job prints: on stdout, or beside it when stdout is for one JSON document."""
    stream = sys.stderr if OUTPUT.as_json else sys.stdout
    stream.write(printable(text))
    stream.flush()


def _failure(ended: JobState) -> JobFailedError:
    if ended.status == "stopped":
        return JobFailedError(f"Job {ended.job_id} was stopped.")
    if ended.exit_code is None:  # it did not begin, and Ray says why
        return JobFailedError(f"Job {ended.job_id} did not start: {ended.message[-2_000:].strip()}")
    how = f"by signal {ended.exit_code - 128}" if 128 < ended.exit_code < 193 else f"with exit code {ended.exit_code}"
    last = next((line for line in reversed(ended.message.splitlines()) if line.strip()), "")
    # The message ends with the end of the log: the last line of a traceback is what went wrong.
    return JobFailedError(
        f"Job {ended.job_id} ended {how}; the last line that it printed: {last[:500]}",
        hint=f"What it used is recorded all the same: sovereign usage --agent job:{ended.job_id}",
    )


def _document(state: JobState) -> dict[str, Any]:
    from cluster.jobs.job import LABEL, PREFIX

    said = state.metadata
    document = dataclasses.asdict(state)
    for name in ("tenant", "project", "subject", "budget_usd", "run"):
        document[name] = said.get(PREFIX + name)
    document["labels"] = {k.removeprefix(LABEL): v for k, v in said.items() if k.startswith(LABEL)}
    return document


def _render(console: Console, jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        console.print("No job was submitted since the cluster started.")
        return
    columns = ["job", "status", "tenant", "project", "submitted by", "started", "labels"]
    rows = [
        [
            job["job_id"],
            job["status"],
            job["tenant"],
            job["project"],
            job["subject"],
            f"{datetime.fromtimestamp(job['start_time'] / 1e3, UTC):%Y-%m-%d %H:%M:%S}" if job["start_time"] else "",
            ", ".join(f"{name}={value}" for name, value in job["labels"].items()),
        ]
        for job in jobs
    ]
    console.print(table(columns, rows))
