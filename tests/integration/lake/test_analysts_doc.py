"""Every query of docs/analysts.md runs as it stands, on a real lake, and says what is true."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cluster.clock import SystemClock
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.journal.fact import Fact, Stream
from cluster.journal.usage_event import lost_event
from cluster.journal.writer import JournalWriter
from cluster.lake.schema import USAGE
from cluster.lake.ship import Shipper
from cluster.settings import PROJECT_ROOT, Settings
from cluster.wiring import open_object_store
from tests.lake_samples import AGENT, admitted, final, make_calls, usage_fact
from tests.servers.seaweedfs import S3Server, s3_credentials, seaweedfs

__all__ = ["s3_credentials", "seaweedfs"]

PAGE = (PROJECT_ROOT / "docs" / "analysts.md").read_text()
BLOCKS = re.findall(r"^```(sql|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def fill(settings: Settings) -> None:
    """Ship 6 calls: one event twice, one loss that was none, one true loss, and a refusal."""
    found = admitted()
    events = [lost_event(found), final(found), lost_event(admitted()), final(), final(outcome="failed")]
    refusal = AuditEvent.new(SystemClock(), AuditAction.TOOL_REFUSE, "denied", actor="planner-001", reason="not granted")
    with Shipper.open(settings.journal_dir, open_object_store(settings), "n1") as shipper:
        with JournalWriter(settings.journal_dir, AGENT, 1) as agent:
            make_calls(agent, 2)
            agent.append_many([usage_fact(e) for e in events])
            shipper.step()
            agent.append_many([usage_fact(events[3]), Fact(Stream.AUDIT, refusal.to_body())])
        shipper.step()


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lake in `.sovereign/` below the working folder."""
    monkeypatch.chdir(tmp_path)
    fill(Settings(home=tmp_path / ".sovereign"))


@pytest.mark.usefixtures("lake")
def test_the_sql_runs_and_counts_right() -> None:
    """All SQL in order on one connection, as a reader would paste it."""
    answers: list[Any] = []
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        for kind, text in BLOCKS:
            if kind == "sql":
                relation = con.sql(text)
                answers.append(relation.to_arrow_table().to_pylist() if relation is not None else [])
        kinds = con.sql("select kind, count(*) as n from usage group by kind order by kind").fetchall()
    assert kinds == [("final", 5), ("lost", 1)]
    view, by_day, endings, lost, refused = answers
    assert not view
    assert [(r["tenant_id"], r["calls"], r["tokens_out"]) for r in by_day] == [("acme", 5, 5 * 34)]
    assert {r["outcome"]: r["calls"] for r in endings} == {"ok": 4, "failed": 1, "lost": 1}
    assert len(lost) == 1
    assert [(r["action"], r["reason"]) for r in refused] == [("tool:call:refuse", "not granted")]


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "docs/analysts.md", "exec"), names)  # noqa: S102  # the page's own code is what is tested
    return names


def python_block(word: str) -> str:
    (block,) = [text for kind, text in BLOCKS if kind == "python" and word in text]
    return block


@pytest.mark.usefixtures("lake")
def test_the_python_runs_and_counts_right(capsys: pytest.CaptureFixture[str]) -> None:
    """DuckDB, Polars and pyarrow, each block by itself."""
    assert run(python_block("duckdb.sql(f"))["calls"].fetchall() == [("planner-001", 7)]
    assert run(python_block("polars"))["by_model"].row(0) == ("acme", "scripted:echo", 6, 5 * 34, 1.0)
    per_agent = run(python_block("import pyarrow.compute"))["per_agent"].to_pylist()
    assert [(r["agent_id_min"], r["cpu_us_min_sum"]) for r in per_agent] == [("planner-001", 5 * 5_600)]
    assert "planner-001" in capsys.readouterr().out


@pytest.mark.usefixtures("s3_credentials")
def test_the_s3_query_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seaweedfs: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a real S3 store, with nothing but pyarrow and DuckDB."""
    url = f"s3://{seaweedfs.bucket}/{uuid.uuid4().hex}"
    fill(Settings(home=tmp_path, lake_url=url, s3_endpoint=seaweedfs.endpoint))
    monkeypatch.setenv("SOVEREIGN_LAKE_URL", url)
    monkeypatch.setenv("SOVEREIGN_S3_ENDPOINT", seaweedfs.endpoint)
    run(python_block("S3FileSystem"))
    shown = capsys.readouterr().out
    assert re.search(r"final\W+5\b", shown)
    assert re.search(r"lost\W+2\b", shown)


def test_every_column_is_explained() -> None:
    """The page's table and the schema name the same columns."""
    table = PAGE.split("## Columns")[1].split("\n## ")[0]
    named = {n for row in table.splitlines() if row.startswith("| `") for n in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(USAGE.names)
