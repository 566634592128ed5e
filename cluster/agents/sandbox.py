"""The port of what confines a tool: a child process that gets JSON, may compute, and may ask its host for declared pages.

A tool is never trusted: not its result, not its error text, not how long it takes. Fails closed: a sandbox that cannot
be had is an error or a warning at start, never a tool that runs with fewer walls than `describe` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.agents.egress import EgressPolicy

# The folder of the tools that are shipped; the child sees it and nothing else of this project.
TOOLS_DIR = Path(__file__).parent / "tools"


# What an interpreter needs to start and do something.
MIN_TOOL_MEMORY_BYTES = 64 << 20
# Children of one agent that run at once; a model may ask for many tools in one answer, and the others wait.
MAX_CHILDREN = 4


class SandboxWeakWarning(UserWarning):
    """Tools run without a namespace of their own: they can read what this process's user can read."""


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """What one tool call may take; reaching any of them ends that call alone."""

    memory_bytes: int = 512 << 20
    cpu_s: int = 20
    wall_s: float = 30.0
    # The longest line that the tool may write, and so its largest result.
    output_bytes: int = 256 << 10
    # 1 means that the tool can start no process and no thread.
    processes: int = 1
    # What the tool may write to its own /tmp, in all.
    file_bytes: int = 16 << 20
    # How many pages it may ask its host for.
    fetches: int = 16

    @classmethod
    def within(cls, memory_bytes: int) -> ToolLimits:
        """Return the usual limits for the tools of an agent that declared `memory_bytes`.

        A tool gets at most half of it: children count against their agent, and one that takes all would end the agent.
        """
        return cls(memory_bytes=min(cls().memory_bytes, max(MIN_TOOL_MEMORY_BYTES, memory_bytes // 2)))


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What came of one tool call: a result, or an error for the model to read, and the CPU that it took either way."""

    result: Any = None
    error: str | None = None
    cpu_us: int = 0


class Sandbox(Protocol):
    """Runs tools. Safe for several calls at once."""

    @property
    def strength(self) -> Literal["strong", "weak"]:
        """Whether a tool is kept from the host's files, processes and network by the kernel."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what confines a tool here, for `status`."""
        ...

    async def run(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        limits: ToolLimits,
        egress: EgressPolicy,
        folders: Mapping[str, Path] | None = None,
    ) -> ToolRun:
        """Run `tool` with `arguments` in a fresh child and return what came of it.

        Charges the child's CPU to the current call's meter, also when the task is cancelled, which kills the child.
        Raises UnavailableError when no child can be started.
        """
        ...
