"""Tools in namespaces of their own, by bubblewrap: no network, no files but the interpreter's, no other processes."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cluster.agents.egress import EgressPolicy
from cluster.agents.sandbox import MAX_CHILDREN, TOOLS_DIR, ToolLimits, ToolRun
from cluster.agents.seccomp import tool_filter
from cluster.agents.tool_process import ToolProcess, run_tool
from cluster.agents.tools_bytecode import compile_tools

PROBE_TIMEOUT_S = 10.0
_NOBODY = "65534"
_CHILD_TOOLS = "/tools"
_START = "import sys; sys.path.insert(0, sys.argv[1]); import child; child.main()"


class BubblewrapSandbox:
    """The strong sandbox. The walls are the kernel's: see `describe`."""

    def __init__(self, tools_dir: Path = TOOLS_DIR) -> None:
        compile_tools(tools_dir)
        self._slots = asyncio.Semaphore(MAX_CHILDREN)
        self._walls = [*_walls(), "--ro-bind", str(tools_dir), _CHILD_TOOLS]

    @property
    def strength(self) -> Literal["strong"]:
        """Always strong."""
        return "strong"

    def describe(self) -> dict[str, Any]:
        """Return the walls."""
        return {
            "sandbox": "bubblewrap",
            "strength": "strong",
            "network": "none",
            "files": "the interpreter's, read-only; a bounded /tmp",
            "processes": "its own namespace, without /proc",
            "system_calls": "filtered" if tool_filter(processes=False) else "not filtered on this architecture",
            "user": "nobody, without capabilities",
        }

    async def run(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        limits: ToolLimits,
        egress: EgressPolicy,
        folders: Mapping[str, Path] | None = None,
    ) -> ToolRun:
        """Run `tool` in a fresh child; see the port."""
        inside = {name: f"/folders/{name}" for name in folders or {}}
        binds = [part for name, path in (folders or {}).items() for part in ("--ro-bind", str(path), inside[name])]

        def start() -> ToolProcess:
            program = tool_filter(processes=limits.processes > 1)
            fd = _readable(program) if program else -1
            try:
                command = [
                    *self._walls,
                    *binds,
                    *("--size", str(limits.file_bytes), "--tmpfs", "/tmp"),  # noqa: S108  # the child's own
                    *("--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108  # the child's own
                    *(("--seccomp", str(fd)) if program else ()),
                    *_interpreter(_CHILD_TOOLS),
                ]
                return ToolProcess(command, pass_fds=(fd,) if program else (), session=False)
            finally:
                if program:
                    os.close(fd)

        async with self._slots:
            return await run_tool(start, tool, arguments, limits, egress, folders=inside)


@functools.cache
def probe() -> str:
    """Return "" when bubblewrap can run our interpreter here, else the reason why not, for a person."""
    if shutil.which("bwrap") is None:
        return "is not installed"
    command = [*_walls(), "--remount-ro", "/", _python(), "-I", "-S", "-c", "import json, sqlite3, resource"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False, env={})
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"does not run here: {e}"
    return "" if done.returncode == 0 else f"does not work here: {done.stderr.decode(errors='replace').strip()[:300]}"


def _interpreter(tools: str) -> Sequence[str]:
    # -I: no environment, no user site, no current folder; -S: no site-packages. Both also halve the start-up time.
    return (_python(), "-I", "-S", "-X", "frozen_modules=on", "-c", _START, tools)


def _python() -> str:
    # The real one: a virtual environment's is a link out of the walls.
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


@functools.cache
def _walls() -> tuple[str, ...]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    seen = [Path(_python()), base / "lib" / version, *sorted((base / "lib").glob("libpython3*.so*"))]
    binds: list[str] = []
    for path in (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib")):
        if path.is_dir() and not path.is_symlink():
            binds += ["--ro-bind", str(path), str(path)]
    for path in (Path("/lib"), Path("/lib64")):
        if path.is_symlink():
            binds += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            binds += ["--ro-bind", str(path), str(path)]
    for path in seen:
        if path.exists() and not any(path.is_relative_to(p) for p in ("/usr/lib", "/usr/local/lib")):
            binds += ["--ro-bind", str(path.resolve()), str(path)]
    return (
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        # Without a process of bubblewrap's own between, the one outside waits for the tool itself and is billed for it.
        "--as-pid-1",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
        "--uid",
        _NOBODY,
        "--gid",
        _NOBODY,
        "--hostname",
        "tool",
        *binds,
    )


def _readable(data: bytes) -> int:
    fd = os.memfd_create("tool-filter", 0)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
