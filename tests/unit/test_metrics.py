"""Metrics: cheap in the process, merged over the node, and neither lost nor doubled when processes end."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.lake.ship_report import ShipReport
from cluster.telemetry import snapshots
from cluster.telemetry.metrics import MAX_WORDS, Metrics, Stage
from cluster.telemetry.snapshots import MAX_TENANTS, RETIRED, render
from tests.sizes import soak

# Counts `n` calls in a process of its own, writes them, and ends as told.
COUNT = """
import os, sys
from pathlib import Path
from cluster.telemetry.metrics import Metrics
directory, component, n, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
m = Metrics(directory, component)
for _ in range(n):
    m.call("acme", "ok", 1000)
m.queue_depth(7)
m.flush()
if end == "killed":
    os.kill(os.getpid(), 9)
"""


def count_in_a_process(directory: Path, component: str, n: int, end: str = "returned") -> None:
    done = subprocess.run([sys.executable, "-c", COUNT, str(directory), component, str(n), end], check=False)
    assert done.returncode == (-9 if end == "killed" else 0)


def page(directory: Path) -> dict[str, float]:
    """Return the merged page as `name{label="value"}` → value."""
    samples = {}
    for family in text_string_to_metric_families(render(directory).decode()):
        for s in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))
            name = f"{s.name}{{{labels}}}" if labels else s.name
            assert name not in samples, f"{name} is on the page twice"
            samples[name] = s.value
    return samples


def test_everything_that_is_counted_is_on_the_page(tmp_path: Path) -> None:
    """Each metric has its unit in its name, its labels, and the value that it was told."""
    m = Metrics(tmp_path, "gateway")
    m.request("openai", 200)
    m.call("acme", "ok", 1_500)
    m.call("acme", "failed", 2_500_000)
    for stage in Stage:
        m.stage(stage, 100)
    m.stage("no_such_stage", 100)
    m.refused("grant:replayed")
    m.queue_depth(3)
    m.live_agents(2)
    m.woken(40_000)
    m.woken()
    m.shipped(ShipReport(1, 100, 7, 2, 1, 30, 4, 5, 6, 4096, 3, "503", 1.0))
    m.waiting(4096, 8192, 61.5)
    m.flush()
    got = page(tmp_path)
    assert got["sovereign_requests_total{door=openai,status=200}"] == 1
    assert got["sovereign_calls_total{outcome=ok,tenant=acme}"] == 1
    assert got["sovereign_calls_total{outcome=failed,tenant=acme}"] == 1
    assert got["sovereign_call_seconds_count"] == 2
    assert got["sovereign_call_seconds_sum"] == pytest.approx(2.5015)
    assert got["sovereign_call_seconds_bucket{le=0.0025}"] == 1
    assert got["sovereign_call_seconds_bucket{le=+Inf}"] == 2
    assert {s for s in Stage if got[f"sovereign_stage_seconds_count{{stage={s}}}"] == 1} == set(Stage)
    assert "no_such_stage" not in str(got)
    assert got["sovereign_refusals_total{reason=grant:replayed}"] == 1
    assert (got["sovereign_queue_depth"], got["sovereign_live_agents"]) == (3, 2)
    assert (got["sovereign_wakes_total"], got["sovereign_wake_seconds_count"]) == (2, 1)
    assert got["sovereign_shipped_segments_total"] == 1
    assert got["sovereign_shipped_rows_total{stream=usage}"] == 100
    assert got["sovereign_shipped_rows_total{stream=audit}"] == 7
    assert (got["sovereign_ship_backlog_bytes"], got["sovereign_live_journals"]) == (4096, 3)
    assert (got["sovereign_ship_backlog_limit_bytes"], got["sovereign_ship_stuck_seconds"]) == (8192, 61.5)
    assert (got["sovereign_lost_calls_total"], got["sovereign_journal_torn_bytes_total"]) == (2, 30)
    assert got["sovereign_integrity_alarms_total{kind=broken_journal}"] == 4
    assert got["sovereign_integrity_alarms_total{kind=conflict}"] == 5
    assert (got["sovereign_refused_facts_total"], got["sovereign_store_failures_total"]) == (6, 1)
    assert got["sovereign_processes{component=gateway}"] == 1
    assert not [name for name in got if "_created" in name]


def test_processes_of_a_node_are_added_up(tmp_path: Path) -> None:
    """Counters, histograms and gauges of live processes sum over them."""
    for n in (1, 2, 3):
        m = Metrics(tmp_path, f"gateway-{n}")
        for _ in range(n):
            m.call("acme", "ok", 1_000)
        m.queue_depth(n)
        m.flush()
    got = page(tmp_path)
    assert got["sovereign_calls_total{outcome=ok,tenant=acme}"] == 6
    assert got["sovereign_call_seconds_bucket{le=0.001}"] == 6
    assert got["sovereign_queue_depth"] == 6


def test_ended_processes_keep_their_counters_once_and_lose_their_gauges(tmp_path: Path) -> None:
    """Also killed ones, however often the page is read; their files are gone. Control: snapshots._fold."""
    count_in_a_process(tmp_path, "agent", 3)
    count_in_a_process(tmp_path, "agent", 4, "killed")
    for _ in range(3):
        got = page(tmp_path)
        assert got["sovereign_calls_total{outcome=ok,tenant=acme}"] == 7
        assert got["sovereign_call_seconds_count"] == 7
        assert "sovereign_queue_depth" not in got
    assert not list(tmp_path.glob("agent-*"))
    count_in_a_process(tmp_path, "agent", 5)
    assert page(tmp_path)["sovereign_calls_total{outcome=ok,tenant=acme}"] == 12


@pytest.mark.parametrize("kill_at", ["before the sum is written", "before a file is removed", "between two files"])
def test_a_kill_while_folding_neither_loses_nor_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: str) -> None:
    """The sum and the names of what is in it are written as one. Control: the names in retired.json."""
    count_in_a_process(tmp_path, "agent", 3)
    count_in_a_process(tmp_path, "agent", 4)

    class KilledError(Exception):
        pass

    unlinked: list[object] = []

    def die(*args: object, **kwargs: object) -> None:
        if kill_at == "between two files" and not unlinked:
            unlinked.append(args[0])
            os.unlink(str(args[0]))  # noqa: PTH108  # Path.unlink is what dies here
            return
        raise KilledError

    with monkeypatch.context() as patched:
        if kill_at == "before the sum is written":
            patched.setattr(snapshots, "_replace", die)
        else:
            patched.setattr(Path, "unlink", die)
        with pytest.raises(KilledError):
            render(tmp_path)
    for _ in range(2):
        assert page(tmp_path)["sovereign_calls_total{outcome=ok,tenant=acme}"] == 7
    assert not list(tmp_path.glob("agent-*"))


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    """A file of this id and another start is of an ended process, so its gauges are gone."""
    m = Metrics(tmp_path, "agent")
    m.call("acme", "ok", 1)
    m.queue_depth(5)
    m.flush()
    path = m._file.path
    component, pid, started, rest = path.stem.rsplit("-", 3)
    path.rename(path.with_name(f"{component}-{pid}-{int(started) - 1}-{rest}.json"))
    got = page(tmp_path)
    assert got["sovereign_calls_total{outcome=ok,tenant=acme}"] == 1
    assert "sovereign_queue_depth" not in got


def test_counters_only_grow_while_processes_come_and_go(tmp_path: Path) -> None:
    """From one reading to the next no counter falls, which is what Prometheus takes for a restart."""
    before: dict[str, float] = {}
    staying = Metrics(tmp_path, "gateway")
    for n in range(soak(4, 40)):
        staying.call("acme", "ok", 1)
        staying.flush()
        count_in_a_process(tmp_path, "agent", n, "killed" if n % 2 else "returned")
        now = page(tmp_path)
        falls = {k for k, v in before.items() if ("_total" in k or "_bucket" in k or "_count" in k) and now.get(k, 0) < v}
        assert not falls
        before = now


def test_tenants_have_a_bound_in_a_process_and_on_the_page(tmp_path: Path) -> None:
    """The first 200 have a series of their own, for good; the rest share `other`; no call is uncounted."""
    for half in range(2):
        m = Metrics(tmp_path, f"gateway-{half}")
        for i in range(MAX_TENANTS + 50):
            m.call(f"tenant-{half * 150 + i}", "ok", 1)
        m.flush()
    for _ in range(2):
        got = {k: v for k, v in page(tmp_path).items() if k.startswith("sovereign_calls_total")}
        assert len(got) == MAX_TENANTS + 1
        assert sum(got.values()) == 2 * (MAX_TENANTS + 50)
    known = set(got)
    count_in_a_process(tmp_path, "agent", 1)
    assert {k for k in page(tmp_path) if k.startswith("sovereign_calls_total")} == known


def test_no_label_grows_without_bound(tmp_path: Path) -> None:
    """Reasons, outcomes, doors and statuses that come from outside end in `other`; memory is bounded as well."""
    m = Metrics(tmp_path, "gateway")
    for i in range(5 * MAX_WORDS):
        m.refused(f"reason-{i}")
        m.request(f"door-{i}", i)
        m.call("acme", f"outcome-{i}", 1)
    for i in range(20 * MAX_TENANTS):
        m.call(f"tenant-{i}", "ok", 1)
    m.flush()
    got = page(tmp_path)
    for name in ("sovereign_refusals_total", "sovereign_calls_total"):
        assert len([k for k in got if k.startswith(name)]) <= MAX_WORDS + MAX_TENANTS + 2
    assert got["sovereign_refusals_total{reason=other}"] == 4 * MAX_WORDS
    assert len(m._known) <= 20 * MAX_TENANTS
    calls = next(series for name, _, _, series in json.loads(m._file.path.read_bytes()) if name == "sovereign_calls")
    assert len(calls) <= MAX_WORDS + MAX_TENANTS + 2, "the process's own memory and file are bounded too"


def test_a_damaged_file_is_left_out_and_said(tmp_path: Path) -> None:
    """Bytes that are no snapshot do not take the page away."""
    m = Metrics(tmp_path, "gateway")
    m.call("acme", "ok", 1)
    m.flush()
    (tmp_path / "agent-1-2-3.json").write_bytes(b'{"torn')
    (tmp_path / "agent-1-2-4.json").write_bytes(b'[["a", "counter", "h", [["a_total", [], "x"]]]]')
    (tmp_path / RETIRED).write_bytes(b"\xff\xff")
    got = page(tmp_path)
    assert got["sovereign_metrics_unreadable_files"] == 2
    assert got["sovereign_calls_total{outcome=ok,tenant=acme}"] == 1
    assert (tmp_path / "retired.damaged").exists()


def test_a_snapshot_is_written_as_a_whole_and_only_when_it_changed(tmp_path: Path) -> None:
    """A reader never sees half of one; an idle process writes nothing."""
    m = Metrics(tmp_path, "gateway")
    m.flush()
    first = m._file.path.stat()
    m.flush()
    assert m._file.path.stat().st_ino == first.st_ino
    m.refused("x")
    m.flush()
    assert m._file.path.stat().st_ino != first.st_ino
    assert json.loads(m._file.path.read_bytes())
    assert not list(tmp_path.glob(".*"))


def test_a_forked_child_does_not_write_over_its_parent(tmp_path: Path) -> None:
    """The file belongs to one process, also when the object was inherited."""
    m = Metrics(tmp_path, "gateway")
    m.refused("x")
    m.flush()

    def count_again() -> None:
        m.refused("x")
        m.flush()

    child = multiprocessing.get_context("fork").Process(target=count_again)
    child.start()
    child.join()
    assert page(tmp_path)["sovereign_refusals_total{reason=x}"] == 1


def test_of_process_writes_by_itself_and_at_the_end(tmp_path: Path) -> None:
    """A process that only counts leaves its last numbers when it ends."""
    code = "import sys; from pathlib import Path; from cluster.telemetry.metrics import Metrics\n"
    code += "Metrics.of_process(Path(sys.argv[1]), 'agent').refused('x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert page(tmp_path)["sovereign_refusals_total{reason=x}"] == 1


def test_a_process_has_one_set_of_metrics(tmp_path: Path) -> None:
    """Whoever asks again gets the same one, so that there is one file and one thread."""
    first = Metrics.of_process(tmp_path, "agent")
    assert Metrics.of_process(tmp_path, "agent") is first
    assert Metrics.of_process(tmp_path, "tool") is not first
    first.flush()
    assert page(tmp_path)["sovereign_processes{component=agent}"] == 1


def test_a_disk_that_does_not_take_the_snapshot_stops_nobody(tmp_path: Path) -> None:
    """Counting goes on, and the next snapshot has it all."""
    m = Metrics(tmp_path / "m", "gateway")
    (tmp_path / "m").rename(tmp_path / "away")
    m.refused("x")
    m.flush()
    (tmp_path / "away").rename(tmp_path / "m")
    m.flush()
    assert page(tmp_path / "m")["sovereign_refusals_total{reason=x}"] == 1


def test_an_empty_node_has_a_page(tmp_path: Path) -> None:
    """Before any process wrote there is a page, and the folder is made."""
    assert b"sovereign_metrics_unreadable_files 0.0" in render(tmp_path / "new")


def test_a_bucket_names_the_trace_of_its_last_call(tmp_path: Path) -> None:
    """Of all processes the latest, in OpenMetrics' format alone; a call without a trace leaves it."""
    for component, trace in (("agent", "a" * 32), ("other", "b" * 32)):
        metrics = Metrics(tmp_path, component)
        metrics.call("acme", "ok", 3_000, trace)
        metrics.call("acme", "ok", 3_000)
        metrics.flush()
    page = render(tmp_path, openmetrics=True).decode()
    assert "b" * 32 in page
    assert "a" * 32 not in page
    assert "trace_id" not in render(tmp_path).decode()
