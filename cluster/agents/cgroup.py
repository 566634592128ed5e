"""A control group of one agent's own, version 1 or 2, where this process may write one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CPU_PERIOD_US = 100_000
# What all agents weigh together against everything else on the machine: so many ordinary processes for each CPU.
AGENTS_WEIGHT = 2
# The kernel refuses a quota below 1 ms.
MIN_QUOTA_US = 1_000
# Room above the declared memory, so that the agent sees a MemoryError before the kernel ends its process.
MEMORY_SLACK_BYTES = 64 << 20


@dataclass(slots=True)
class Cgroup:
    """What was set for this process, and why the rest was not."""

    # Set limits: "cpu" or "memory" → the words for the report, such as "cgroup v1 quota".
    enforced: dict[str, str] = field(default_factory=dict)
    # Limits that could not be set, with the reason.
    refused: dict[str, str] = field(default_factory=dict)
    _leaves: list[tuple[Path, Path]] = field(default_factory=list)

    def remove(self) -> None:
        """Move this process back to where it was and remove its groups; does nothing when there are none."""
        for leaf, home in reversed(self._leaves):
            with contextlib.suppress(OSError):
                (home / "cgroup.procs").write_text(str(os.getpid()))
            _rmdir(leaf)
            _rmdir(leaf.parent)
        self._leaves.clear()


def join_cgroup(
    cluster: str,
    agent: str,
    *,
    cpu_milli: int,
    memory_bytes: int,
    mounts: Path = Path("/proc/self/mountinfo"),
    membership: Path = Path("/proc/self/cgroup"),
) -> Cgroup:
    """Put this process into `sovereign-<cluster>/<agent>` below its own group, with its CPU quota and memory limit.

    Never raises: what could not be set is in `refused`. Groups that ended agents left behind are removed on the way.
    """
    group = Cgroup()
    try:
        homes = dict(_homes(mounts.read_text(), membership.read_text()))
    except OSError as e:
        group.refused = {"cpu": f"control groups cannot be read: {e.strerror}", "memory": f"likewise: {e.strerror}"}
        return group
    folder, leaf_name = f"sovereign-{_safe(cluster)}", _safe(agent)
    quota = f"{max(MIN_QUOTA_US, cpu_milli * CPU_PERIOD_US // 1000)}"
    limit = str(memory_bytes + MEMORY_SLACK_BYTES)
    wanted = {
        "cpu": {
            1: [("cpu.cfs_period_us", str(CPU_PERIOD_US)), ("cpu.cfs_quota_us", quota)],
            2: [("cpu.max", f"{quota} {CPU_PERIOD_US}")],
        },
        "memory": {1: [("memory.limit_in_bytes", limit)], 2: [("memory.max", limit), ("memory.oom.group", "1")]},
    }
    for controller, files in wanted.items():
        version, home = homes.get(controller) or homes.get("") or (0, Path())
        if not version:
            group.refused[controller] = f"no control group with the {controller} controller is mounted"
            continue
        leaf = home / folder / leaf_name
        try:
            _limit(leaf, files[version])
            if controller == "cpu":
                _weigh(leaf, version, cpu_milli)
            if not any(leaf == known for known, _ in group._leaves):
                _enter(leaf)
                group._leaves.append((leaf, home))
        except OSError as e:
            group.refused[controller] = f"the control group v{version} is not writable here: {e.strerror or e}"
            if not any(leaf == known for known, _ in group._leaves):
                _rmdir(leaf)
                _rmdir(leaf.parent)
            continue
        group.enforced[controller] = f"cgroup v{version} {'quota' if controller == 'cpu' else 'limit'}"
    return group


def remove_cgroups(cluster: str, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Remove the groups that killed agents of `cluster` left behind, wherever they were made; one with a process in it stays."""
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup"):
                _remove_below(Path(left.split(" ")[4]), f"sovereign-{_safe(cluster)}", depth=4)


def _remove_below(folder: Path, name: str, depth: int) -> None:
    with contextlib.suppress(OSError):
        for child in os.scandir(folder):
            if child.name == name:
                _sweep(Path(child.path))
                _rmdir(Path(child.path))
            elif depth > 0 and child.is_dir(follow_symlinks=False):
                _remove_below(Path(child.path), name, depth - 1)


def _homes(mountinfo: str, membership: str) -> Iterator[tuple[str, tuple[int, Path]]]:
    """Yield (controller, (version, this process's own group)); version 2 has the controller ""."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else [n for n in ("cpu", "memory") if kind == "cgroup" and n in options.split(",")]
        for name in names:
            if name in own:
                inside = os.path.relpath(own[name], root)
                # A mount of a container shows only its own part of the tree.
                home = Path(point) if inside.startswith("..") else Path(point) / inside
                yield name, (2 if kind == "cgroup2" else 1, home)


def _limit(leaf: Path, files: list[tuple[str, str]]) -> None:
    # A limit file that is missing (a controller that was not delegated) must not be made as a plain file.
    for attempt in (1, 2):
        leaf.parent.mkdir(exist_ok=True)
        _sweep(leaf.parent)
        try:
            leaf.mkdir(exist_ok=True)
            break
        except FileNotFoundError:  # another agent's sweep took the parent
            if attempt == 2:
                raise
    for name, value in files:
        with open(os.open(leaf / name, os.O_WRONLY | os.O_CLOEXEC), "w") as file:  # noqa: PTH123  # must not create
            file.write(value)


def _weigh(leaf: Path, version: int, cpu_milli: int) -> None:
    """Give agents their due when the CPU is short: each by what it declared, and all of them what the machine's CPUs weigh.

    A new group weighs as much as one ordinary process, so without this all agents together would get the share of one.
    """
    name, unit, most = ("cpu.shares", 1024, 1 << 18) if version == 1 else ("cpu.weight", 100, 10_000)
    together = AGENTS_WEIGHT * unit * (os.cpu_count() or 1)
    for folder, weight in ((leaf.parent, together), (leaf, cpu_milli * unit // 1000)):
        with contextlib.suppress(OSError):  # a weight is fairness, not a limit
            (folder / name).write_text(str(min(most, max(2, weight))))


def _enter(leaf: Path) -> None:
    with open(os.open(leaf / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC), "w") as file:  # noqa: PTH123  # must not create
        file.write(str(os.getpid()))


def _sweep(folder: Path) -> None:
    for leaf in folder.iterdir():
        if leaf.is_dir():
            _rmdir(leaf)  # refused by the kernel while a process is in it


def _rmdir(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100]
