"""A disk that is really full: a file system of a few hundred kilobytes in a mount namespace of one child process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.settings import PROJECT_ROOT

_MOUNTED = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'


def run_on_small_disk(folder: Path, size_bytes: int, code: str) -> str:
    """Run Python `code` with `folder` on a disk of `size_bytes`, without root's rights; return what it printed."""
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNTED, "sh", str(size_bytes), str(folder)]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("by design: this machine allows no user namespaces, so that no small disk can be made")
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [*unshare, sys.executable, "-c", textwrap.dedent(code), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
