"""A cluster of its own for one benchmark, and how results are printed."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.servers.cluster import RunningCluster, running_cluster


@contextlib.contextmanager
def cluster(**settings: object) -> Iterator[RunningCluster]:
    """Start a cluster as a user would, in a folder of its own, and end it."""
    with (
        tempfile.TemporaryDirectory(prefix="sov-bench-") as folder,
        running_cluster(Path(folder) / "home", **settings) as running,
    ):
        yield running


def access_token(url: str, key: str) -> str:
    """Return a fresh access token for an API key; it is taken for some minutes."""
    form = {"grant_type": "client_credentials"}
    answer = httpx.post(f"{url}/oauth/token", data=form, headers={"authorization": f"Bearer {key}"}, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["access_token"])


def authenticate(running: RunningCluster, kind: str) -> None:
    """Have the calls of a benchmark bring the home's API key (`key`), or an access token that was got with it now (`jwt`)."""
    key = (running.settings.secret_dir / "api-key").read_text().strip()
    running.key = key if kind == "key" else access_token(running.state.http_url, key)


def emit(result: dict[str, object]) -> None:
    """Print the result as the last line."""
    print(json.dumps(result), flush=True)


def progress(text: str) -> None:
    """Say what is being measured."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
