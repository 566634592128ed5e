"""Declared memory and CPU held in real processes: what is too much fails alone, and the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.agents.cgroup import join_cgroup, remove_cgroups
from cluster.agents.enforcement import Enforced, EnforcementReport

PROLOGUE = """
import json, os, sys, threading, time, mmap, subprocess
from cluster.agents.enforcement import enforce
breached = threading.Event(); seen = []
def on_breach(held, allowed):
    seen.append((held, allowed)); breached.set()
def limit(mib, **more):
    return enforce(cpu_milli=500, memory_bytes=mib << 20, cluster="test", agent=f"a{os.getpid()}-g1", on_breach=on_breach,
                   poll_s=0.01, **more)
def say(value): print(json.dumps(value), flush=True)
"""


def run(body: str) -> Any:
    """Run `body` in a fresh process and return the JSON that it printed last."""
    done = subprocess.run([sys.executable, "-c", PROLOGUE + body], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_allocation_beyond_the_declared_memory_fails_alone() -> None:
    """Control: RLIMIT_DATA in enforce. 1 GiB under 256Mi raises MemoryError, and the process works on, also with threads."""
    got = run("""
limit(256, use_cgroup=False)
try:
    taken = bytearray(1 << 30)
    failed = False
except MemoryError:
    failed = True
ran = []
threads = [threading.Thread(target=ran.append, args=(n,)) for n in range(50)]
for t in threads: t.start()
for t in threads: t.join()
say([failed, len(bytearray(100 << 20)), len(ran), breached.is_set()])
""")
    assert got == [True, 100 << 20, 50, False]


def test_shared_memory_is_seen_by_the_watchdog() -> None:
    """Control: MemoryWatchdog. Shared pages, which RLIMIT_DATA does not count, are noticed."""
    got = run("""
limit(32, use_cgroup=False)
m = mmap.mmap(-1, 64 << 20)
for page in range(0, 64 << 20, 4096): m[page] = 1
say([breached.wait(20), seen[0][0] > seen[0][1]])
""")
    assert got == [True, True]


def test_children_are_seen_by_the_watchdog() -> None:
    """Control: MemoryWatchdog. A child within its own limit still counts against its parent's declared memory."""
    got = run("""
limit(48, use_cgroup=False)
child = "import sys; a = [bytearray(b'x') * (30 << 20)]; print(flush=True); sys.stdin.read()"
procs = [subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
for p in procs: p.stdout.readline()
ok = breached.wait(20)
for p in procs: p.communicate()
say(ok)
""")
    assert got is True


def test_limits_come_off_again() -> None:
    """After close the process may take more, and may be bound again."""
    got = run("""
limit(64, use_cgroup=False).close()
a = len(bytearray(b"x") * (200 << 20))
second = limit(64, use_cgroup=False)
say([a, second.report.to_dict()["memory"]["by"], threading.active_count()])
second.close()
""")
    assert got == [200 << 20, ["RLIMIT_DATA", "watchdog"], 2]


def test_report_says_what_is_only_advisory() -> None:
    """Each resource says by what it is enforced, or that it is advisory and why."""
    report = EnforcementReport(Enforced(500, (), ("no control group",)), Enforced(1 << 20, ("watchdog",)))
    assert report.to_dict() == {
        "cpu": {"declared_milli": 500, "status": "advisory", "by": [], "why": ["no control group"]},
        "memory": {"declared_bytes": 1 << 20, "status": "enforced", "by": ["watchdog"], "why": []},
    }


def test_cgroup_or_the_reason_why_not() -> None:
    """Where this process may write control groups the quota and limit are really set; elsewhere the report says why."""
    got = run("""
from pathlib import Path
e = limit(128)
e.report
groups = Path("/proc/self/cgroup").read_text()
report = e.report.to_dict()
e.close()
say([report, groups, Path("/proc/self/cgroup").read_text()])
""")
    report, inside, after = got
    for name in ("cpu", "memory"):
        by_cgroup = any("cgroup" in how for how in report[name]["by"])
        assert by_cgroup != bool(report[name]["why"])
        assert by_cgroup == ("sovereign-test" in "".join(x for x in inside.splitlines() if name in x or x.startswith("0::")))
    assert "sovereign-test" not in after


def test_memory_cgroup_ends_the_process_that_goes_round_the_limit() -> None:
    """Where the memory group is writable: a process that lifts its own rlimit is ended by the kernel, alone."""
    body = """
import resource
e = limit(64)
if not any("cgroup" in how for how in e.report.memory.by):
    say("not here"); raise SystemExit
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
child = "a = bytearray(b'x') * (400 << 20)"
say(subprocess.run([sys.executable, "-c", child]).returncode)
e.close()
"""
    done = subprocess.run([sys.executable, "-c", PROLOGUE + body], capture_output=True, text=True, timeout=60, check=False)
    if "not here" in done.stdout:
        pytest.skip("no writable memory control group on this machine")
    assert done.returncode == -9 or json.loads(done.stdout.splitlines()[-1]) == -9


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """A control group tree of plain files."""

    def make(version: int, *files: str) -> dict[str, Path]:
        mounts, membership = tmp_path / "mountinfo", tmp_path / "cgroup"
        if version == 2:
            home = tmp_path / "u" / "own"
            mounts.write_text(f"30 20 0:26 / {tmp_path / 'u'} rw - cgroup2 cgroup rw\n")
            membership.write_text("0::/own\n")
            leaves = [home / "sovereign-c" / "a-g1"]
        else:
            mounts.write_text("".join(f"3 2 0:2 / {tmp_path / n} rw - cgroup cgroup rw,{n}\n" for n in ("cpu", "memory")))
            membership.write_text("2:cpu,cpuacct:/own\n1:memory:/own\n")
            leaves = [tmp_path / n / "own" / "sovereign-c" / "a-g1" for n in ("cpu", "memory")]
        for leaf in leaves:
            leaf.mkdir(parents=True)
            (leaf.parent.parent / "cgroup.procs").touch()
            for file in ("cgroup.procs", *files):
                (leaf / file).touch()
        return {"mounts": mounts, "membership": membership}

    return make


def test_both_versions_get_the_same_numbers(fake: Any, tmp_path: Path) -> None:
    """500m is half of each period; memory gets a little room, so that a MemoryError comes before the kernel."""
    v1 = fake(1, "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes")
    group = join_cgroup("c", "a-g1", cpu_milli=500, memory_bytes=1 << 30, **v1)
    assert group.enforced == {"cpu": "cgroup v1 quota", "memory": "cgroup v1 limit"}
    leaf = tmp_path / "cpu" / "own" / "sovereign-c" / "a-g1"
    assert (leaf / "cpu.cfs_quota_us").read_text() == "50000"
    memory = tmp_path / "memory" / "own" / "sovereign-c" / "a-g1" / "memory.limit_in_bytes"
    assert int(memory.read_text()) == (1 << 30) + (64 << 20)
    v2 = fake(2, "cpu.max", "memory.max", "memory.oom.group")
    group = join_cgroup("c", "a-g1", cpu_milli=500, memory_bytes=1 << 30, **v2)
    assert group.enforced == {"cpu": "cgroup v2 quota", "memory": "cgroup v2 limit"}
    assert (tmp_path / "u" / "own" / "sovereign-c" / "a-g1" / "cpu.max").read_text() == "50000 100000"


def test_a_controller_that_is_not_delegated_is_advisory(fake: Any) -> None:
    """Without its file nothing is written and nothing fails; the reason is kept."""
    group = join_cgroup("c", "a-g1", cpu_milli=500, memory_bytes=1 << 30, **fake(2, "memory.max", "memory.oom.group"))
    assert group.enforced == {"memory": "cgroup v2 limit"}
    assert "not writable here" in group.refused["cpu"]


def test_what_killed_agents_left_is_removed(tmp_path: Path) -> None:
    """Groups of one cluster are found wherever they were made; those of another stay."""
    for name in ("a/b/sovereign-c/x-g1", "sovereign-c/y-g1", "a/sovereign-d/z-g1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mountinfo").write_text(f"3 2 0:2 / {tmp_path} rw - cgroup cgroup rw,memory\n")
    remove_cgroups("c", tmp_path / "mountinfo")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("sovereign-*")) == ["a/sovereign-d"]
