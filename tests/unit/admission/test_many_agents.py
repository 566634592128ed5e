"""What governance holds of agents that are only registered: nothing, however many there are."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

from cluster.identity.ids import AgentId
from tests.governors import DEFAULT, begin, principal, request
from tests.sizes import soak


def test_a_registered_agent_takes_no_memory(tmp_path: Path) -> None:
    """Less than 1 KB of memory each, after it was registered, listed and looked up; the ledger on disk has it all."""
    governor = begin(tmp_path)

    def register(first: int, count: int) -> None:
        for number in range(first, first + count):
            governor.register(principal(), request(f"a{number}", cpu="10m"))
            governor.get(DEFAULT, AgentId(f"a{number}"))
        assert len(governor.list(DEFAULT, "", 10)) == 10

    count = soak(60, 900)
    register(0, 20)  # whatever is made once is made now
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        register(20, count)
        gc.collect()
        assert (tracemalloc.get_traced_memory()[0] - before) / count < 1024
    finally:
        tracemalloc.stop()
    governor.close()
