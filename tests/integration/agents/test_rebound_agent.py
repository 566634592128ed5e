"""A process that becomes another agent keeps nothing of the one that it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_of_an_agent_is_left_in_the_process_that_becomes_another(tmp_path: Path) -> None:
    """Its journal, conversations, key, connections, limits, threads and memory are gone; its conversation comes back with it.

    Controls: actors/agent.py AgentActor.vacate and AgentActor.rebind.
    """
    command = [sys.executable, "-m", "tests.servers.rebound_agent", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "vacated too early": "busy",
        "rebound while held": "illegal_transition",
        "b": "one after 8",
        "vacated": "vacant",
        "watch": "watched",
        "status": {"state": "blank"},
        "held": [],
        "limit lifted": True,
        "threads left": [],
        "collected": True,
        "connection closed": True,
        "b's grant": "grant_refused",
        "a": "one after 8",
        "status of a": {"agent_id": "a", "generation": 1, "running": 0},
        "vacated again": "vacant",
        "b remembers": "two after 12",
    }
