"""Tools in a plain child process: limits and a system call filter, but this user's view of the file system."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cluster.agents.egress import EgressPolicy
from cluster.agents.sandbox import MAX_CHILDREN, TOOLS_DIR, ToolLimits, ToolRun
from cluster.agents.seccomp import tool_filter
from cluster.agents.tool_process import ToolProcess, run_tool
from cluster.agents.tools_bytecode import compile_tools

_START = "import sys; sys.path.insert(0, sys.argv[1]); import child; child.main()"


class ProcessSandbox:
    """The weak sandbox, for machines without user namespaces: a tool can read what this user can read, and write to it."""

    def __init__(self, tools_dir: Path = TOOLS_DIR) -> None:
        compile_tools(tools_dir)
        self._slots = asyncio.Semaphore(MAX_CHILDREN)
        self._tools_dir = tools_dir

    @property
    def strength(self) -> Literal["weak"]:
        """Always weak."""
        return "weak"

    def describe(self) -> dict[str, Any]:
        """Return the walls."""
        filtered = tool_filter(processes=False) is not None
        return {
            "sandbox": "process",
            "strength": "weak",
            "network": "none: sockets are refused" if filtered else "this machine's",
            "files": "this user's",
            "processes": "none may be started" if filtered else "this user's",
            "system_calls": "filtered" if filtered else "not filtered on this architecture",
            "user": "this user",
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
        command = [sys.executable, "-I", "-S", "-X", "frozen_modules=on", "-c", _START, str(self._tools_dir)]
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="tool-") as scratch:
                return await run_tool(
                    lambda: ToolProcess(command, cwd=Path(scratch), session=True),
                    tool,
                    arguments,
                    limits,
                    egress,
                    folders={name: str(path) for name, path in (folders or {}).items()},
                    seccomp=tool_filter(processes=limits.processes > 1) or b"",
                )
