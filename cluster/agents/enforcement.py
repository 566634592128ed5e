"""How the CPU and memory that an agent declared are enforced in its process, and what of it is only advisory here.

Memory: RLIMIT_DATA turns the allocation that is too much into a MemoryError, which the agent survives; the watchdog
sees what the limit does not (children, shared memory) and ends the agent; a control group, where writable, is the last
wall. CPU: a control group's quota, or nothing but Ray's placement.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.agents.cgroup import Cgroup, join_cgroup
from cluster.agents.memory_watchdog import MemoryWatchdog, OnBreach, held_bytes

_log = logging.getLogger(__name__)

# A thread's stack counts in full against RLIMIT_DATA; 8 MiB each, the usual default, would leave room for few threads.
THREAD_STACK_BYTES = 1 << 20
# How long a report waits for the control group.
JOIN_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Enforced:
    """How one resource is held to what was declared: `by` names the means, and is empty when it is only advisory."""

    declared: int
    by: tuple[str, ...] = ()
    # Why a means could not be used; never empty when `by` is.
    notes: tuple[str, ...] = ()

    @property
    def enforced(self) -> bool:
        """Whether anything holds it."""
        return bool(self.by)


@dataclass(frozen=True, slots=True)
class EnforcementReport:
    """What `status` says of an agent's resources."""

    cpu: Enforced
    memory: Enforced

    def to_dict(self) -> dict[str, Any]:
        """Return {"cpu": {"declared_milli", "status", "by", "why"}, "memory": {"declared_bytes", …}}.

        `status` is "enforced" or "advisory"; `by` and `why` are lists of words.
        """
        return {"cpu": _row("declared_milli", self.cpu), "memory": _row("declared_bytes", self.memory)}


class Enforcement:
    """The limits in force. `close` takes them off again, so that the process may be bound to another agent."""

    def __init__(self, cpu_milli: int, memory_bytes: int) -> None:
        self._cpu_milli = cpu_milli
        self._memory_bytes = memory_bytes
        self._memory_by: list[str] = []
        self._memory_notes: list[str] = []
        self._group = Cgroup(refused=dict.fromkeys(("cpu", "memory"), "control groups are switched off"))
        self._watchdog: MemoryWatchdog | None = None
        self._data_limit_before = resource.getrlimit(resource.RLIMIT_DATA)
        self._complete = threading.Event()

    @property
    def report(self) -> EnforcementReport:
        """What is enforced and by what; waits for the control group, which comes a few milliseconds after `enforce`."""
        self._complete.wait(JOIN_TIMEOUT_S)
        group = self._group
        cpu_by = tuple(group.enforced[n] for n in ("cpu",) if n in group.enforced)
        memory_by = (*self._memory_by, *(group.enforced[n] for n in ("memory",) if n in group.enforced))
        return EnforcementReport(
            cpu=Enforced(self._cpu_milli, cpu_by, tuple(group.refused[n] for n in ("cpu",) if n in group.refused)),
            memory=Enforced(
                self._memory_bytes,
                memory_by,
                (*self._memory_notes, *(group.refused[n] for n in ("memory",) if n in group.refused)),
            ),
        )

    def close(self) -> None:
        """Stop the watchdog, lift the limit, leave and remove the control group."""
        if self._watchdog is not None:
            self._watchdog.stop()
        resource.setrlimit(resource.RLIMIT_DATA, self._data_limit_before)
        self._group.remove()

    def _limit_data(self) -> None:
        soft, hard = vm_data_bytes() + self._memory_bytes, self._data_limit_before[1]
        if hard != resource.RLIM_INFINITY and soft > hard:
            soft = hard
            self._memory_notes.append("RLIMIT_DATA was already lower than declared")
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
            self._memory_by.append("RLIMIT_DATA")
        except (OSError, ValueError) as e:
            self._memory_notes.append(f"RLIMIT_DATA could not be set: {e}")

    def _watch(self, on_breach: OnBreach, poll_s: float, join: Callable[[], Cgroup] | None) -> None:
        def first() -> None:
            try:
                if join is not None:
                    self._group = join()
            finally:
                self._complete.set()

        self._watchdog = MemoryWatchdog(held_bytes() + self._memory_bytes, on_breach, poll_s=poll_s, first=first)
        self._watchdog.start()
        self._memory_by.append("watchdog")


def enforce(
    *,
    cpu_milli: int,
    memory_bytes: int,
    cluster: str,
    agent: str,
    on_breach: OnBreach,
    use_cgroup: bool = True,
    poll_s: float = 0.2,
) -> Enforcement:
    """Hold this process to `cpu_milli` thousandths of a CPU and `memory_bytes` beyond what it holds already.

    Takes the names for the control group (`agent` with its generation, such as "planner-g3") and what to call, from the
    watchdog's thread, with the bytes held and allowed when memory is exceeded all the same: the agent must end itself.
    Never fails for lack of rights; the report says what is enforced and what is advisory, and why.
    """
    _small_thread_stacks()
    limits = Enforcement(cpu_milli, memory_bytes)
    limits._limit_data()
    # Joining a group waits for the kernel, 10 ms and more the first time: not on the way of an agent that wakes.
    join = partial(join_cgroup, cluster, agent, cpu_milli=cpu_milli, memory_bytes=memory_bytes) if use_cgroup else None
    limits._watch(on_breach, poll_s, join)
    return limits


def vm_data_bytes() -> int:
    """Return what this process has mapped that RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"VmData:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmData")


def _small_thread_stacks() -> None:
    threading.stack_size(THREAD_STACK_BYTES)
    try:
        # The threads of C++ libraries take the C library's default.
        libc = ctypes.CDLL(None, use_errno=True)
        attributes = ctypes.create_string_buffer(64)  # pthread_attr_t has 56 bytes on 64-bit Linux
        libc.pthread_attr_init(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(THREAD_STACK_BYTES))
        libc.pthread_setattr_default_np(attributes)
        libc.pthread_attr_destroy(attributes)
    except (OSError, AttributeError) as e:  # another C library
        _log.info("the C library's thread stacks stay as they are: %s", e)


def _row(declared: str, resource_: Enforced) -> dict[str, Any]:
    return {
        declared: resource_.declared,
        "status": "enforced" if resource_.enforced else "advisory",
        "by": list(resource_.by),
        "why": list(resource_.notes),
    }
