"""A cluster of its own for one benchmark, and how results are printed."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers.cluster import RunningCluster, running_cluster


@contextlib.contextmanager
def cluster(**settings: object) -> Iterator[RunningCluster]:
    """Start a cluster as a user would, in a folder of its own, and end it."""
    with (
        tempfile.TemporaryDirectory(prefix="sov-bench-") as folder,
        running_cluster(Path(folder) / "home", **settings) as running,
    ):
        yield running


def emit(result: dict[str, object]) -> None:
    """Print the result as the last line."""
    print(json.dumps(result), flush=True)


def progress(text: str) -> None:
    """Say what is being measured."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
