"""The Python client, in a process of its own that connects as an operator's script does."""

from __future__ import annotations

import json
import subprocess
import sys

from cluster.settings import PROJECT_ROOT
from tests.servers.cluster import RunningCluster

PROGRAM = """
import asyncio, json, pathlib
from actors.client import connect
from cluster.errors import AdmissionDeniedError, ConflictError, NotFoundError

async def main():
    governance = await connect()
    planner = json.loads(pathlib.Path("examples/strategic_planner.json").read_text())
    registration = await governance.register_agent(**planner | {"agent_id": "client-planner-001"})
    shown = await governance.show_agent("client-planner-001")
    default = await governance.register_agent("client-default", ["market_analysis"])
    try:
        await governance.register_agent("client-denied", ["market_analysis", "payment_execution"])
    except AdmissionDeniedError as e:
        denied = [f.message for f in e.errors]
    await governance.register_agent("client-echo", ["market_analysis"], model="scripted:echo")
    answer = await governance.invoke("client-echo", "over the channel")
    pieces = [p async for p in governance.stream("client-echo", "one two three")]
    await governance.remove_agent("client-echo")
    try:
        await governance.invoke("client-echo", "gone")
    except NotFoundError:
        gone = True
    await governance.aclose()
    print(json.dumps({"registration": registration, "shown": shown, "default": default, "denied": denied,
                      "answer": answer.text, "pieces": pieces, "gone": gone}))

asyncio.run(main())
"""


def test_example_1_and_the_rest_of_the_client(cluster: RunningCluster) -> None:
    """Example 1 as it stands; defaults; a denial that names the capability; call, stream and removal over the channel."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT_ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Ray says things of its own on a driver's output.
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    said = json.loads(line)
    assert said["registration"] == {
        "status": "registered",
        "agent_id": "client-planner-001",
        "security_clearance": "validated",
    }
    assert said["shown"]["tools"] == ["data_analysis", "report_generation", "web_search"]
    assert said["shown"]["max_iterations"] == 10
    assert said["default"]["status"] == "registered"
    assert any("payment_execution" in m for m in said["denied"])
    assert said["answer"] == "echo: over the channel"
    assert "".join(said["pieces"]) == "echo: one two three"
    assert said["gone"] is True
