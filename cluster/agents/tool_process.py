"""One tool's child process, from the host's side: the JSON lines, the deadline, the end, and the bill."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from cluster.agents.call import CURRENT_METER
from cluster.agents.egress import EgressPolicy
from cluster.agents.memory_watchdog import children_of
from cluster.agents.sandbox import ToolLimits, ToolRun
from cluster.errors import UnavailableError
from cluster.telemetry.tracing import span

_log = logging.getLogger(__name__)

# How long a child that has answered, or was killed, may take to be gone.
END_S = 2.0
STDERR_BYTES = 4096
MAX_ERROR_CHARS = 2000


class _BadAnswerError(Exception):
    """The child wrote something that is not of the protocol."""


class ToolProcess:
    """A started child. `kill_all` ends it and everything that it started."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int] = (), cwd: Path | None = None, session: bool) -> None:
        here, there = socket.socketpair()
        self._stderr = os.memfd_create("tool-stderr", os.MFD_CLOEXEC)
        try:
            # No shell, no environment, no descriptor but these; the interpreter's own start code is all that runs unlimited.
            self._process = subprocess.Popen(
                command,
                stdin=there.fileno(),
                stdout=there.fileno(),
                stderr=self._stderr,
                env={"LC_ALL": "C.UTF-8"},
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=session,
            )
        except OSError as e:
            here.close()
            os.close(self._stderr)
            raise UnavailableError(f"No process can be started for a tool: {e}", retry_after_s=1.0) from e
        finally:
            there.close()
        self._socket = here
        self._session = session
        self._cpu_us = 0
        self._status: int | None = None
        self._gone = asyncio.Event()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The process that this one started; the tool may run in one further down."""
        return self._process.pid

    async def talk(self, job: dict[str, Any], limits: ToolLimits, egress: EgressPolicy) -> ToolRun:
        """Send the job and return what the child answers; ends at the deadline. The CPU is not in it yet."""
        reader, writer = await asyncio.open_connection(sock=self._socket, limit=limits.output_bytes)
        try:
            async with asyncio.timeout(limits.wall_s):
                return await self._converse(reader, writer, job, limits, egress)
        except TimeoutError:
            self.kill_all()
            return ToolRun(error=f"The tool took longer than {limits.wall_s:g} s and was stopped.")
        except _BadAnswerError as e:
            self.kill_all()
            return ToolRun(error=f"The tool's answer is refused: {e}")
        except (ConnectionError, EOFError):
            await self._wait(END_S)
            return ToolRun(error=f"The tool ended without an answer{self._why_ended(limits)}.")
        finally:
            writer.close()

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        job: dict[str, Any],
        limits: ToolLimits,
        egress: EgressPolicy,
    ) -> ToolRun:
        writer.write(orjson.dumps(job) + b"\n")
        await writer.drain()
        fetches = 0
        while True:
            message = _checked(await _line(reader, limits.output_bytes))
            if "result" in message:
                return ToolRun(result=message["result"])
            if "error" in message:
                return ToolRun(error=str(message["error"])[:MAX_ERROR_CHARS])
            fetches += 1
            if fetches > limits.fetches:
                raise _BadAnswerError(f"it asked for more than {limits.fetches} pages")
            writer.write(orjson.dumps(await _fetch(message["fetch"], egress)) + b"\n")
            await writer.drain()

    async def end(self, tool: str) -> int:
        """Make sure that the child and all it started are gone; return the CPU that they took, in microseconds."""
        # A child that has answered is on its way out; one that has not must not get another moment.
        await self._wait(0.05)
        if not self._gone.is_set():
            self.kill_all()
            await self._wait(END_S)
        if not self._gone.is_set():
            self._process.kill()
            await self._wait(END_S)
        if not self._gone.is_set():
            self._loop.remove_reader(self._pidfd)
            _log.error("the process %d of tool %s cannot be ended", self._process.pid, tool)
        os.close(self._pidfd)
        words = os.pread(self._stderr, STDERR_BYTES, 0)
        os.close(self._stderr)
        if words:
            # Escaped: a tool must not write lines into our log.
            _log.warning("tool %s wrote: %s", tool, words.decode("utf-8", "replace").encode("unicode_escape").decode())
        return self._cpu_us

    def kill_all(self) -> None:
        """Kill the child and everything that it started, at once."""
        if self._status is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._session:
                os.killpg(self._process.pid, signal.SIGKILL)
                return
            # The first process inside the namespace: all others die with it and are counted by the one outside.
            for pid in children_of(self._process.pid) or [self._process.pid]:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        try:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else waited for it, and its CPU is lost
            _log.warning("the CPU of process %d was not counted: it was reaped by another part", self._process.pid)
            self._status = 0
        else:
            if pid == 0:
                return
            self._status = os.waitstatus_to_exitcode(status)
            self._cpu_us = round((usage.ru_utime + usage.ru_stime) * 1_000_000)
        self._process.returncode = self._status
        self._loop.remove_reader(self._pidfd)
        self._gone.set()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()

    def _why_ended(self, limits: ToolLimits) -> str:
        # bubblewrap passes a signal on as 128 + its number.
        number = -self._status if self._status and self._status < 0 else (self._status or 0) - 128
        if number == signal.SIGKILL:
            return f": it was stopped at its limit of {limits.cpu_s} s of CPU or its limit of memory"
        if number == signal.SIGXFSZ:
            return f": it wrote more than {limits.file_bytes >> 20} MiB"
        return f" (exit {self._status})" if self._status else ""


async def run_tool(
    start: Callable[[], ToolProcess],
    tool: str,
    arguments: Mapping[str, Any],
    limits: ToolLimits,
    egress: EgressPolicy,
    *,
    folders: Mapping[str, str],
    seccomp: bytes = b"",
) -> ToolRun:
    """Run one job in the child that `start` makes, and charge its CPU to the current call however it ends."""
    job = {
        "tool": tool,
        "arguments": dict(arguments),
        "folders": dict(folders),
        "seccomp": seccomp.hex(),
        "limits": {
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "file_bytes": limits.file_bytes,
            "processes": limits.processes,
        },
    }
    with span("tool_process", attributes={"gen_ai.tool.name": tool}) as traced:
        process = start()
        traced.set({"process.pid": process.pid})
        run, cpu_us = await _to_its_end(process, tool, job, limits, egress)
        traced.set({"sovereign.cpu_us": cpu_us})
        if run.error is not None:
            traced.failed("tool")
    return ToolRun(result=run.result, error=run.error, cpu_us=cpu_us)


async def _to_its_end(
    process: ToolProcess, tool: str, job: dict[str, Any], limits: ToolLimits, egress: EgressPolicy
) -> tuple[ToolRun, int]:
    """Return what the child answered and the CPU that it took, which is charged also when this raises."""
    meter = CURRENT_METER.get(None)
    cpu_us = 0
    try:
        run = await process.talk(job, limits, egress)
    except BaseException:
        process.kill_all()
        raise
    finally:
        # Shielded: a caller that goes away still waits for the kill, so that no child outlives its call uncounted.
        ending = asyncio.ensure_future(process.end(tool))
        try:
            cpu_us = await asyncio.shield(ending)
        except asyncio.CancelledError:
            process.kill_all()
            cpu_us = await ending
            raise
        finally:
            if meter is not None:
                meter.child_cpu_us += cpu_us
    return run, cpu_us


async def _line(reader: asyncio.StreamReader, limit: int) -> bytes:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise _BadAnswerError(f"it is larger than {limit >> 10} KiB") from None
    except asyncio.IncompleteReadError:
        raise EOFError from None
    return line


def _checked(line: bytes) -> dict[str, Any]:
    """Return the message in `line`: strict JSON, an object with exactly one known key. Nothing else is looked at."""
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise _BadAnswerError("it is not JSON") from None
    if not isinstance(message, dict) or len(message) != 1 or not message.keys() <= {"result", "error", "fetch"}:
        raise _BadAnswerError("it is not an object with one of result, error or fetch")
    return message


async def _fetch(wanted: Any, egress: EgressPolicy) -> dict[str, Any]:
    url = wanted.get("url") if isinstance(wanted, dict) else None
    if not isinstance(url, str):
        raise _BadAnswerError("a fetch names no url")
    try:
        return {"fetched": (await egress.fetch(url)).to_dict()}
    except ValueError as e:
        return {"refused": str(e)}
