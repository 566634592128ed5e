"""What runs first in a tool's process: takes the job, puts the limits on, runs the tool, and writes one answer.

One JSON object a line, on standard input and output. From the host: the job, then an answer to each fetch. To the host:
{"fetch": {"url": …}} any number of times, then {"result": …} or {"error": "…"}. A tool is a module with
`run(arguments, host)`; a ValueError is an error for the model to read, anything else a fault of the tool.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from typing import Any


class Host:
    """What a tool may ask of its host."""

    def __init__(self, lines: Lines, folders: dict[str, str]) -> None:
        self._lines = lines
        self._folders = folders

    def folder(self, name: str) -> str | None:
        """Return the path of the read-only folder `name`, or None when the host gave none."""
        return self._folders.get(name)

    def fetch(self, url: str) -> dict[str, Any]:
        """Return {"status", "content_type", "text"} of the page at `url`; raises ValueError when the host refuses."""
        self._lines.write({"fetch": {"url": url}})
        answer = self._lines.read()
        if "refused" in answer:
            raise ValueError(str(answer["refused"]))
        page: dict[str, Any] = answer["fetched"]
        return page


class Lines:
    """JSON objects, one a line, over two descriptors."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._pending = b""

    def read(self) -> dict[str, Any]:
        """Return the next object; raises EOFError when the host is gone."""
        parts = [self._pending]
        while b"\n" not in parts[-1]:
            part = os.read(self._source, 1 << 18)
            if not part:
                raise EOFError
            parts.append(part)
        line, _, self._pending = b"".join(parts).partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Write one object."""
        data = memoryview(json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._sink, data) :]
        except BrokenPipeError:
            os._exit(1)  # the host has given up on this answer


def main() -> None:
    """Do the one job that the host sends, and end the process."""
    # What the tool prints goes to the log, not between the protocol's lines.
    sink = os.dup(1)
    os.dup2(2, 1)
    lines = Lines(0, sink)
    job = lines.read()
    _confine(job["limits"], bytes.fromhex(job.get("seccomp", "")))
    try:
        tool = importlib.import_module(job["tool"])
        answer = {"result": tool.run(job["arguments"], Host(lines, job["folders"]))}
        lines.write(answer)
    except MemoryError:
        lines.write({"error": f"The tool needed more than its {job['limits']['memory_bytes'] >> 20} MiB of memory."})
    except ValueError as e:
        lines.write({"error": str(e)})
    except Exception as e:
        traceback.print_exc()
        lines.write({"error": f"The tool failed: {type(e).__name__}: {e}"})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing of a tool outlives its answer, not even its exit handlers


def _confine(limits: dict[str, int], seccomp: bytes) -> None:
    if seccomp:
        _filter_system_calls(seccomp)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))
    # Soft and hard alike: a soft limit's signal could be caught, and the first process of a namespace ignores it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"]))
    if limits["processes"] > 1:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))


def _filter_system_calls(program: bytes) -> None:
    """Install the filter and end with the parent, where no outer sandbox has done both."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    set_parent_death_signal, set_no_new_privileges, set_seccomp, filter_mode, kill = 1, 38, 22, 2, 9
    filled = Program(len(program) // 8, program)
    if (
        libc.prctl(set_parent_death_signal, kill, 0, 0, 0)
        or libc.prctl(set_no_new_privileges, 1, 0, 0, 0)
        or libc.prctl(set_seccomp, filter_mode, ctypes.byref(filled))
    ):
        raise OSError(ctypes.get_errno(), "the system call filter could not be installed")
