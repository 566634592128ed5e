"""The processes of a cluster, found by the marker that each carries in its environment: these, and nothing that is not ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.ray_environment import MARKER


def marked(cluster_id: str, node: str = "") -> Iterator[psutil.Process]:
    """Yield every live process on this machine that carries this cluster's marker, except the caller; of one `node` if named."""
    wanted = {f"{MARKER}={cluster_id}".encode()} | ({f"SOVEREIGN_NODE={node}".encode()} if node else set())
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted <= set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")):
                yield process


def end_marked(cluster_id: str, node: str = "", *, gently: bool = True, grace_s: float = 3.0) -> int:
    """End every process with the marker, of one `node` if named, first gently unless told otherwise; return their number."""
    seen: set[int] = set()
    first = psutil.Process.terminate if gently else psutil.Process.kill
    for send in (first, psutil.Process.kill, psutil.Process.kill):
        processes = list(marked(cluster_id, node))
        if not processes:
            break
        for process in processes:
            seen.add(process.pid)
            with contextlib.suppress(psutil.Error):
                send(process)
        psutil.wait_procs(processes, timeout=grace_s)
    return len(seen)


def end_idle_workers(cluster_id: str) -> int:
    """End Ray's workers that were started ahead and do nothing yet; returns their number. Ray starts others."""
    ended = 0
    for process in marked(cluster_id):
        with contextlib.suppress(psutil.Error):
            if any("ray::IDLE" in part for part in process.cmdline()):
                process.terminate()
                ended += 1
    return ended


def reap_orphans(but: int) -> None:
    """Collect children that came to us when their own parent died; the code of child `but` is read by its Popen."""
    for child in psutil.Process().children():
        if child.pid != but:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)
