"""What every sandbox holds: a tool computes and answers in JSON, or it ends alone, at its limit, billed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.agents.bubblewrap_sandbox import BubblewrapSandbox, probe
from cluster.agents.call import CURRENT_METER, CallMeter
from cluster.agents.egress import EgressPolicy
from cluster.agents.memory_watchdog import children_of
from cluster.agents.process_sandbox import ProcessSandbox
from cluster.agents.sandbox import MAX_CHILDREN, TOOLS_DIR, Sandbox, SandboxWeakWarning, ToolLimits, ToolRun
from cluster.errors import ConfigurationError
from cluster.wiring import open_sandbox

LIMITS = ToolLimits(memory_bytes=128 << 20, cpu_s=1, wall_s=20, output_bytes=64 << 10, file_bytes=4 << 20)
Run = Callable[..., Awaitable[ToolRun]]


def need_bubblewrap() -> None:
    if why := probe():
        if os.environ.get("CI") == "true":
            pytest.fail(f"bubblewrap {why}")
        pytest.skip(f"bubblewrap {why}")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with one tool that does whatever it is told."""
    folder = tmp_path / "tools"
    folder.mkdir()
    shutil.copy(TOOLS_DIR / "child.py", folder)
    (folder / "obey.py").write_text(
        "def run(arguments, host):\n    scope = {'host': host}\n    exec(arguments['code'], scope)\n    return scope.get('r')\n"
    )
    return folder


@pytest.fixture(params=["bubblewrap", "process"])
def sandbox(request: pytest.FixtureRequest, tools: Path) -> Sandbox:
    if request.param == "process":
        return ProcessSandbox(tools)
    need_bubblewrap()
    return BubblewrapSandbox(tools)


@pytest.fixture
def strong(tools: Path) -> Sandbox:
    need_bubblewrap()
    return BubblewrapSandbox(tools)


async def run(sandbox: Sandbox, code: str, limits: ToolLimits = LIMITS, **folders: Path) -> ToolRun:
    return await sandbox.run("obey", {"code": code}, limits, EgressPolicy(), folders)


async def test_a_result_comes_back_and_is_billed(sandbox: Sandbox) -> None:
    """Any JSON value comes back as it is; the child's CPU is counted, on the run and on the call's meter."""
    meter = CallMeter()
    token = CURRENT_METER.set(meter)
    got = await run(sandbox, "sum(range(2_000_000)); r = {'a': [1, 2.5, None, 'ü\\n']}")
    CURRENT_METER.reset(token)
    assert (got.result, got.error) == ({"a": [1, 2.5, None, "ü\n"]}, None)
    assert 1_000 < got.cpu_us == meter.child_cpu_us


async def test_many_at_once(sandbox: Sandbox) -> None:
    """Runs do not meet each other."""
    got = await asyncio.gather(*(run(sandbox, f"r = {n}") for n in range(6)))
    assert [g.result for g in got] == list(range(6))


async def test_children_of_one_agent_are_bounded(sandbox: Sandbox) -> None:
    """Control: the slots of each sandbox. However many tools a model asks for at once, only a few processes run."""
    before = set(_processes())
    tasks = [asyncio.create_task(run(sandbox, "import time; time.sleep(0.05); r = 1")) for _ in range(12)]
    most = 0
    while not all(t.done() for t in tasks):
        most = max(most, len([p for p in children_of() if p not in before]))
        await asyncio.sleep(0.002)
    assert [t.result().result for t in tasks] == [1] * 12
    assert 1 <= most <= MAX_CHILDREN <= 8


def test_tools_get_at_most_half_of_what_their_agent_declared() -> None:
    """A tool at its limit does not end its agent."""
    assert ToolLimits.within(256 << 20).memory_bytes == 128 << 20
    assert ToolLimits.within(64 << 30).memory_bytes == ToolLimits().memory_bytes
    assert ToolLimits.within(1 << 20).memory_bytes == 64 << 20


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such column')", "no such column"),
        ("1 / 0", "The tool failed: ZeroDivisionError"),
        ("r = float('nan')", "not JSON compliant"),
        ("r = {1, 2}", "not JSON serializable"),
        ("import os; os._exit(3)", "ended without an answer (exit 3)"),
        ("r = 'x' * 100_000", "larger than 64 KiB"),
        ("r = host.fetch('http://example.com/')", "not one that this agent may reach"),
        ("import no_such_module", "ModuleNotFoundError"),
    ],
)
async def test_failures_are_errors_for_the_model(sandbox: Sandbox, code: str, words: str) -> None:
    """Whatever a tool does wrong is told in words and harms nothing else."""
    got = await run(sandbox, code)
    assert got.result is None
    assert words in (got.error or "")
    assert (await run(sandbox, "r = 1")).result == 1


@pytest.mark.parametrize(
    "written",
    [
        b"\x80\x04\x95\x00.\n",
        b"cos\nmkdir\n(S'/tmp/pwned'\ntR.\n",
        b'{"result": NaN}\n',
        b'{"result": 1, "error": "x"}\n',
        b"[1]\n",
        b'{"other": 1}\n',
        b"[" * 5000 + b"\n",
        b'{"result": "\\ud800"}\n',
        b"\xff\xfe\n",
        b'{"fetch": 1}\n',
    ],
)
async def test_an_answer_outside_the_protocol_is_refused(sandbox: Sandbox, written: bytes) -> None:
    """Control: tool_process._checked. A pickle, or JSON that is not exactly the protocol, is an error; it is never unpickled."""
    got = await run(sandbox, f"import os\nfor fd in range(3, 20):\n  try: os.write(fd, {written!r})\n  except OSError: pass")
    assert (got.error or "").startswith("The tool's answer is refused")


def test_no_part_of_the_tools_path_can_unpickle() -> None:
    """Nothing between a tool and the model imports pickle or marshal."""
    for name in ("tool_process", "sandbox", "bubblewrap_sandbox", "process_sandbox", "egress", "tools/child"):
        source = (TOOLS_DIR.parent / f"{name}.py").read_text()
        assert "pickle" not in source
        assert "marshal" not in source


async def test_what_a_tool_prints_is_no_answer(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Output goes to the log, bounded and escaped on one line."""
    got = await run(sandbox, "print('{\"result\": 666}'); print('fake\\nline' * 5000); r = 1")
    assert got.result == 1
    assert max(len(r.getMessage()) for r in caplog.records) < 10_000
    assert not any("\n" in r.getMessage() for r in caplog.records)


async def test_memory_is_limited(sandbox: Sandbox) -> None:
    """Control: RLIMIT_AS in child._confine. More memory than allowed is an error that says so."""
    assert "more than its 128 MiB" in ((await run(sandbox, "r = len(bytearray(200 << 20))")).error or "")
    assert (await run(sandbox, "r = len(bytearray(32 << 20))")).result == 32 << 20


@pytest.mark.parametrize("code", ["while True: pass", "import signal\nsignal.signal(signal.SIGXCPU, print)\nwhile True: pass"])
async def test_a_cpu_spin_ends_at_its_limit(sandbox: Sandbox, code: str) -> None:
    """Control: RLIMIT_CPU in child._confine. A spinning tool is stopped, also one that catches signals, and pays for it."""
    got = await run(sandbox, code)
    assert "limit of 1 s of CPU" in (got.error or "")
    assert 500_000 < got.cpu_us < 3_000_000


async def test_a_sleeping_tool_ends_at_the_deadline(sandbox: Sandbox) -> None:
    """Control: the deadline in ToolProcess.talk. A tool that waits, without CPU, is stopped on the wall clock."""
    got = await run(sandbox, "import time; time.sleep(3600)", ToolLimits(wall_s=0.3))
    assert got.error == "The tool took longer than 0.3 s and was stopped."


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import threading\nwhile True: threading.Thread(target=input).start()",
        "import _posixsubprocess, os; os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
async def test_a_fork_bomb_never_starts(sandbox: Sandbox, code: str) -> None:
    """Control: the system call filter. A tool can start no process and no thread."""
    got = await run(sandbox, code)
    assert "The tool failed" in (got.error or "")


REFUSED_CALLS = {
    "ptrace": (101, "0, 1, 0, 0"),
    "mount": (165, "b'none', b'/tmp', b'tmpfs', 0, 0"),
    "bpf": (321, "0, 0, 0"),
    "socket": (41, "1, 1, 0"),
    "memfd_create": (319, "b'x', 0"),
    "io_uring_setup": (425, "1, 0"),
}


@pytest.mark.parametrize(("number", "arguments"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86_64")
async def test_dangerous_system_calls_are_refused(sandbox: Sandbox, number: int, arguments: str) -> None:
    """Control: seccomp.tool_filter. ptrace, mount, bpf and their like answer EPERM."""
    code = f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nr = [c.syscall({number}, {arguments}), ctypes.get_errno()]"
    assert (await run(sandbox, code)).result == [-1, 1]


async def test_writing_is_limited(sandbox: Sandbox) -> None:
    """Control: RLIMIT_FSIZE. A file beyond the limit is a quota error in the tool."""
    got = await run(sandbox, "with open('full', 'wb') as f:\n  while True: f.write(bytes(1 << 20))")
    assert "File too large" in (got.error or "")


async def test_a_folder_is_there_to_read(sandbox: Sandbox, tmp_path: Path) -> None:
    """A tool reads the folder that it was given, and no other by that way."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("inside")
    code = "import os; r = [open(os.path.join(host.folder('corpus'), 'a.txt')).read(), host.folder('other')]"
    assert (await run(sandbox, code, corpus=tmp_path / "corpus")).result == ["inside", None]


async def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the environment given to the child. No token, no address of the cluster is in it."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    monkeypatch.setenv("SOVEREIGN_HOME", "/somewhere")
    names = (await run(sandbox, "import os; r = sorted(os.environ)")).result
    assert set(names) <= {"PWD", "LC_ALL", "LC_CTYPE"}


async def test_no_descriptor_is_inherited(sandbox: Sandbox, tmp_path: Path) -> None:
    """An open file or socket of the agent's process is not open in the tool's."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with secret.open() as held:
        os.set_inheritable(held.fileno(), True)
        code = """
import os, stat
r = []
for fd in range(64):
    try: r.append([fd, stat.S_IFMT(os.fstat(fd).st_mode)])
    except OSError: pass
"""
        fds = (await run(sandbox, code)).result
    assert [kind for fd, kind in fds if fd > 3] == []
    assert {kind for _, kind in fds} <= {0o140000, 0o100000}  # the protocol's socket, and the log


async def test_cancelling_kills_the_child_and_bills_it(sandbox: Sandbox, tmp_path: Path) -> None:
    """A cancelled call leaves no process behind, and pays for what ran."""
    meter = CallMeter()
    CURRENT_METER.set(meter)
    before = set(_processes())
    task = asyncio.create_task(run(sandbox, "while True: pass", ToolLimits(cpu_s=60)))
    while not (started := set(_processes()) - before):  # noqa: ASYNC110  # a process to appear
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started
    assert not set(_processes()) - before
    assert meter.child_cpu_us > 0


async def test_a_killed_host_leaves_no_tool_behind(sandbox: Sandbox, tools: Path) -> None:
    """kill -9 of the agent's process takes its tools with it."""
    kind = type(sandbox)
    program = f"""
import asyncio, os
from pathlib import Path
from {kind.__module__} import {kind.__name__} as S
from cluster.agents.sandbox import ToolLimits
from cluster.agents.egress import EgressPolicy, Page
class Heard(EgressPolicy):
    async def fetch(self, url):
        print("the tool runs", flush=True)
        return Page(url, 200, "text/plain", "")
async def main():
    s = S(Path({str(tools)!r}))
    code = "host.fetch('I run')\\nwhile True: pass"
    await s.run("obey", {{"code": code}}, ToolLimits(cpu_s=60), Heard())
asyncio.run(main())
"""
    environment = {**os.environ, "TMPDIR": str(tools)}
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE)
    assert host.stdout is not None
    assert await host.stdout.readline() == b"the tool runs\n"
    children = _descendants(host.pid)
    assert children
    host.kill()
    await host.wait()
    async with asyncio.timeout(10):
        while any(_alive(pid) for pid in children):  # noqa: ASYNC110  # processes to go
            await asyncio.sleep(0.005)


def _processes() -> list[int]:
    return list(_descendants(os.getpid()))


def _descendants(pid: int) -> set[int]:
    direct = {c for c in children_of(pid) if _alive(c)}
    return direct | {d for c in direct for d in _descendants(c)}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What only the strong sandbox holds.


HOST_PATHS = "/etc/passwd /proc/1/environ /proc/self/environ /root/.ssh /home /work /run /var /sys /dev/shm"


@pytest.mark.parametrize("path", HOST_PATHS.split())
async def test_no_file_of_the_host_is_seen(strong: Sandbox, path: str) -> None:
    """Control: bubblewrap's mounts. Neither the host's files nor its /proc are there."""
    assert (await run(strong, f"import os; r = os.path.exists({path!r})")).result is False


async def test_project_home_and_tokens_are_not_seen(strong: Sandbox, tmp_path: Path) -> None:
    """Control: bubblewrap's mounts. The cluster's state, its sockets and this project's code cannot be reached."""
    (tmp_path / "token").write_text("secret")
    paths = [str(tmp_path / "token"), str(tmp_path), str(Path(__file__)), str(TOOLS_DIR.parent / "brain.py"), "/tmp/ray"]
    assert (await run(strong, f"import os; r = [os.path.exists(p) for p in {paths!r}]")).result == [False] * len(paths)


async def test_only_the_tools_own_process_is_seen(strong: Sandbox) -> None:
    """Control: the process namespace. A tool can signal and see nobody but itself."""
    assert (await run(strong, f"import os; r = os.getpid(); os.kill({os.getpid()}, 0)")).error is not None


async def test_nothing_but_tmp_is_writable_and_it_is_bounded(strong: Sandbox) -> None:
    """Control: the sized tmpfs and --remount-ro. Many small files end at the quota too; nothing else can be written."""
    code = """
import errno, os
r = []
for path in ("/x", "/tools/x", "/usr/lib/x", "/lib/x"):
    try: open(path, "w")
    except OSError as e: r.append(e.errno == errno.EROFS)
try:
    for n in range(10_000):
        with open(f"/tmp/{n}", "wb") as f: f.write(bytes(1 << 20))
except OSError as e: r += [e.errno == errno.ENOSPC, n]
"""
    assert (await run(strong, code)).result == [True, True, True, True, True, 4]


async def test_the_network_is_not_there_without_the_filter_too(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: --unshare-all. Even if sockets could be made, no host, not even this one, could be reached."""
    need_bubblewrap()
    monkeypatch.setattr("cluster.agents.bubblewrap_sandbox.tool_filter", lambda **_: None)
    listener = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    got = await run(BubblewrapSandbox(tools), f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
    listener.close()
    assert "ConnectionRefusedError" in (got.error or "") or "Network is unreachable" in (got.error or "")


async def test_the_tool_is_nobody_without_capabilities(strong: Sandbox) -> None:
    """Control: --uid and --cap-drop."""
    code = "import os, ctypes\nc = ctypes.CDLL(None)\nr = [os.getuid(), os.getgid(), [c.prctl(23, n) for n in range(38)]]"
    assert (await run(strong, code)).result == [65534, 65534, [0] * 38]


# Which sandbox one gets.


def test_auto_takes_the_strong_one_where_it_works() -> None:
    """No warning where tools are confined."""
    need_bubblewrap()
    assert open_sandbox("auto").strength == "strong"
    assert open_sandbox("bubblewrap").describe()["network"] == "none"


def test_the_weak_one_warns() -> None:
    """Whoever gets the weak sandbox is told what it does not do."""
    with pytest.warns(SandboxWeakWarning, match="file system"):
        sandbox = open_sandbox("process")
    assert (sandbox.strength, sandbox.describe()["files"]) == ("weak", "this user's")


def test_without_bubblewrap_auto_is_weak_and_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing sandbox is a warning or an error, never a silent fallback."""
    monkeypatch.setattr("cluster.agents.bubblewrap_sandbox.probe", lambda: "is not installed")
    with pytest.warns(SandboxWeakWarning, match="bubblewrap is not installed"):
        assert open_sandbox("auto").strength == "weak"
    with pytest.raises(ConfigurationError, match="is not installed"):
        open_sandbox("bubblewrap")
    assert open_sandbox("auto", probed=True).strength == "strong"


def test_the_filter_is_a_program() -> None:
    """One instruction is eight bytes; an architecture without numbers has no filter."""
    from cluster.agents.seccomp import tool_filter

    for machine in ("x86_64", "aarch64"):
        program = tool_filter(processes=False, machine=machine)
        assert program is not None
        assert len(program) % 8 == 0
        assert len(program) > len(tool_filter(processes=True, machine=machine) or b"")
    assert tool_filter(processes=False, machine="s390x") is None


def test_bubblewrap_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probe says what is wrong in words."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.__wrapped__() == "is not installed"
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2; exit 1\n")
    fake.chmod(0o755)
    from cluster.agents import bubblewrap_sandbox

    bubblewrap_sandbox._walls.cache_clear()
    try:
        assert "Permission denied" in probe.__wrapped__()
    finally:
        bubblewrap_sandbox._walls.cache_clear()
