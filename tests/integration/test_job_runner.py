"""What stands between Ray's job server and a job's command: it writes down what the command used, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.identity.ids import uuid7
from cluster.journal.audit_event import AuditEvent
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.usage_event import Outcome, UsageEvent, UsageKind
from cluster.lake.source import JournalSource
from tests.servers.cluster import eventually

RUN = uuid7()
METADATA = {
    "job_submission_id": "run-1",
    "sovereign.tenant": "acme",
    "sovereign.project": "growth",
    "sovereign.subject": "key:3f9a",
    "sovereign.run": RUN,
    "sovereign.label.team": "research",
}
# 0.2 s of CPU, whatever the machine is doing.
BURN = "import time\nwhile time.process_time() < 0.2: pass\n"
RUNNER = [sys.executable, "-P", "-m", "actors.job_runner", "--", sys.executable, "-c"]
IMPATIENT = """
import sys
from actors.job_meter import open_books, running_job
from actors.job_runner import run
from cluster.settings import Settings
sys.exit(run(sys.argv[1:], open_books(Settings.load(), running_job(), "run-1"), interim_s=0.02))
"""


def environment(home: Path, metadata: dict[str, str]) -> dict[str, str]:
    config = json.dumps({"runtime_env": {}, "metadata": metadata})
    return os.environ | {"SOVEREIGN_HOME": str(home), "RAY_JOB_CONFIG_JSON_ENV_VAR": config}


def job(home: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [*RUNNER, program]
    return subprocess.run(command, env=environment(home, METADATA), capture_output=True, text=True, timeout=60, check=False)


def facts(home: Path) -> list[Fact]:
    journals = list_journals(home / "journal")
    return [f for j in journals for _, f in JournalReader(home / "journal", j).read()]


def usage(home: Path) -> list[UsageEvent]:
    return [UsageEvent.from_body(f.body) for f in facts(home) if f.stream is Stream.USAGE]


def lost(home: Path) -> list[UsageEvent]:
    """What the shipper writes for calls of dead journals that never ended."""
    found: list[UsageEvent] = []
    for journal in list_journals(home / "journal"):
        source = JournalSource(JournalReader(home / "journal", journal))
        while not source.drained:
            source.read(1_000)
        found += source.lost()
    return found


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job that has burnt its CPU, said so, and stays; what it used is written every 20 ms."""
    program = f"{BURN}print('burnt', flush=True)\ntime.sleep(600)"
    command = [sys.executable, "-c", IMPATIENT, sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment(tmp_path, METADATA), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "burnt\n"
        yield process
        process.kill()


def test_a_jobs_cpu_is_written_under_its_identity(tmp_path: Path) -> None:
    """One final row for the run, with who it was for; beside it who began it and how it ended, in the audit."""
    done = job(tmp_path, BURN + "print('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    [row] = usage(tmp_path)
    assert (row.kind, row.outcome, row.billable) == (UsageKind.FINAL, Outcome.OK, True)
    assert (row.tenant_id, row.project_id, row.agent_id, row.invocation_id) == ("acme", "growth", "job:run-1", RUN)
    assert row.cpu_us >= 200_000
    assert row.latency_us > 0
    began, ended = [AuditEvent.from_body(f.body) for f in facts(tmp_path) if f.stream is Stream.AUDIT]
    assert (began.action, began.actor, began.object_id) == ("job:run:start", "key:3f9a", "run-1")
    assert began.detail["labels"] == {"team": "research"}
    assert (ended.action, ended.outcome, ended.detail["exit_code"]) == ("job:run:end", "done", 0)
    assert lost(tmp_path) == []


def test_children_and_what_is_left_running_are_counted_and_ended(tmp_path: Path) -> None:
    """CPU can't be moved out of the bill into a process that outlives its parent."""
    orphan = f"import os, time\nif os.fork(): os._exit(0)\n{BURN}print(os.getpid(), flush=True)\ntime.sleep(600)"
    start = f"subprocess.Popen([sys.executable, '-c', {orphan!r}], stdout=-1, text=True)"
    program = f"import subprocess, sys\nprint({start}.stdout.readline())"
    done = job(tmp_path, program)
    assert done.returncode == 0, done.stderr
    assert usage(tmp_path)[0].cpu_us >= 200_000
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_runner_ends_as_its_command_ended(tmp_path: Path, program: str, code: int) -> None:
    """A job that fails, or that kills itself, fails for Ray too, and its CPU is written."""
    assert job(tmp_path, BURN + program).returncode == code
    [row] = usage(tmp_path)
    assert (row.kind, row.outcome) == (UsageKind.FINAL, Outcome.FAILED)
    assert row.cpu_us >= 200_000


def test_a_stopped_job_is_measured_and_cancelled(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    """`sovereign job stop` sends SIGTERM to the whole tree."""
    held.send_signal(signal.SIGTERM)
    assert held.wait(30) == 128 + signal.SIGTERM
    rows = usage(tmp_path)
    assert [r.outcome for r in rows if r.kind is UsageKind.FINAL] == [Outcome.CANCELLED]
    assert sum(r.cpu_us for r in rows) >= 200_000


def test_a_job_that_is_killed_with_its_runner_keeps_what_was_written(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    """kill -9 of both: the interim rows stand, and the job ends lost."""
    eventually(lambda: sum(r.cpu_us for r in usage(tmp_path)), lambda us: us >= 190_000)  # in ticks of 10 ms
    command = psutil.Process(held.pid).children()
    held.kill()
    held.wait()
    assert [p.kill() for p in command] == [None]
    assert {r.kind for r in usage(tmp_path)} == {UsageKind.INTERIM}
    [row] = eventually(lambda: lost(tmp_path))
    assert (row.agent_id, row.invocation_id, row.billable) == ("job:run-1", RUN, False)


def test_a_job_that_cannot_be_written_down_does_not_run(tmp_path: Path) -> None:
    """Fails closed: no record, no effect."""
    (tmp_path / "journal").write_text("no folder")
    done = job(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert done.returncode == 1
    assert "journal" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As a shell has it: 127, and one sentence."""
    command = [sys.executable, "-P", "-m", "actors.job_runner", "--", "no-such-program"]
    done = subprocess.run(command, env=environment(tmp_path, METADATA), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (127, "no-such-program can't be run: No such file or directory.\n")
    assert [r.outcome for r in usage(tmp_path)] == [Outcome.FAILED]


@pytest.mark.parametrize("code", [0, 7])
def test_a_job_whose_last_fact_cannot_be_written_keeps_its_exit_code(tmp_path: Path, code: int) -> None:
    """The command has run: how it ended is its own, and that its books are not whole is said."""
    full = "import os, resource, sys\nresource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    done = job(tmp_path, f"{full}sys.exit({code})")
    assert done.returncode == code
    assert f"ended with {code}" in done.stderr
    assert "did not take a fact" in done.stderr
    assert "Traceback" not in done.stderr
    assert usage(tmp_path) == []
