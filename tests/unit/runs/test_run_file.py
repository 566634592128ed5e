"""The file of the runs: what is in it for good, and that no release takes another's for its own."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import ConfigurationError, UnavailableError
from cluster.runs.run import Run, RunStatus
from cluster.runs.sqlite_run_store import SqliteRunStore

# Written by schema version 1. It is here so that a file of today can be read by every later release.
GOLDEN = Path(__file__).parent / "golden" / "runs-v1.sql"
RUN = Run(
    run_id="01990000-0000-7000-8000-000000000001",
    tenant="acme",
    project="default",
    subject="key:1",
    scopes=("sovereign:agents:invoke",),
    kind="native",
    agent_id="planner",
    messages=[{"role": "user", "content": "plan é"}],
    deadline_s=5.0,
    created_us=1_790_000_000_000_000,
    updated_us=1_790_000_000_000_000,
    thread_id="t-1",
    options={"temperature": 0.5},
    metadata={"team": "x"},
    request_id="r-1",
    owner="gateway.a/e1",
)


def fill(path: Path) -> None:
    store = SqliteRunStore(path, clock=FakeClock())
    store.create(RUN, "enqueue")
    store.claim("gateway.a/e1", 1, RUN.created_us + 1)
    store.append_event(RUN.run_id, "done")
    error = {"code": "agent_failed", "detail": "It raised."}
    store.end(RUN.run_id, RunStatus.ERROR, RUN.created_us + 2, answer="done", error=error)
    store.put_document("acme", "thread", "t-1", {"a": 1}, None)
    store.close()


def dump(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return "\n".join([*connection.iterdump(), f"PRAGMA user_version={version};"]) + "\n"


def test_the_format_is_the_golden_file(tmp_path: Path) -> None:
    """What is written today is what version 1 wrote; a change of the schema needs a new version, and a way from the old."""
    fill(tmp_path / "runs.sqlite")
    assert dump(tmp_path / "runs.sqlite") == GOLDEN.read_text()


def test_the_golden_file_is_read(tmp_path: Path) -> None:
    """A file of version 1 is read with everything in it."""
    path = tmp_path / "runs.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(GOLDEN.read_text())
    store = SqliteRunStore(path)
    run = store.get("acme", RUN.run_id)
    assert (run.messages, run.options, run.thread_id, run.scopes) == (RUN.messages, RUN.options, "t-1", RUN.scopes)
    assert (run.status, run.answer, run.error["code"], run.last_event) == (RunStatus.ERROR, "done", "agent_failed", 1)
    assert store.get_document("acme", "thread", "t-1").json == {"a": 1}
    store.close()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    """Nothing is read from it and nothing is written to it."""
    path = tmp_path / "runs.sqlite"
    SqliteRunStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigurationError, match="version 99"):
        SqliteRunStore(path)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds what tenants ask and are answered."""
    path = tmp_path / "home" / "runs.sqlite"
    SqliteRunStore(path).close()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """It fails closed, and says which file."""
    path = tmp_path / "runs.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UnavailableError, match=r"runs\.sqlite"):
        SqliteRunStore(path)
