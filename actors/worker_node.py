"""The process that starts Ray on a node that joins, and stays as long as it runs: `python -m actors.worker_node start …`."""

from __future__ import annotations

import sys

from actors.ray_internals import start_node

if __name__ == "__main__":
    start_node(sys.argv[1:])
