"""A new release under load: gateways, shippers, governance and agents are replaced, and nobody who calls sees it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import psutil

from tests.servers.cluster import RunningCluster, eventually
from tests.sizes import soak

AGENTS = ["upgraded-1", "upgraded-2"]


def parts(cluster: RunningCluster) -> dict[str, set[int]]:
    """Return the process ids of what is to be replaced."""
    titles = ("ServeReplica:sovereign", "ShipperActor", "GovernanceActor", "AgentActor")
    return {title: {p.pid for p in cluster.processes(title)} for title in titles}


def upgrade(cluster: RunningCluster) -> dict[str, Any]:
    command = [sys.executable, "-m", "cli.main", "upgrade", "--json", "--home", str(cluster.settings.home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=cluster.environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def test_threat_85_an_upgrade_under_load_fails_no_call_and_loses_no_event(cluster: RunningCluster) -> None:
    """Controls: the spare gateway; agents that are ended only without calls. Whole and streamed calls go on throughout."""
    for agent in AGENTS:
        cluster.register(agent, model="scripted:steps")
        assert cluster.ask(agent).status_code == 200
    client, over, failed, answered = cluster.async_openai(timeout=120), asyncio.Event(), list[str](), Counter[str]()
    text = json.dumps({"script": [{"sleep_s": 0.2}, {"stream": ["a", "b", "c"]}]})

    async def keep_calling(agent: str, streamed: bool) -> None:
        messages: Any = [{"role": "user", "content": text}]
        while not over.is_set():
            try:
                if streamed:
                    pieces = await client.chat.completions.create(model=agent, messages=messages, stream=True)
                    said = "".join([piece.choices[0].delta.content or "" async for piece in pieces])
                else:
                    answer = await client.chat.completions.create(model=agent, messages=messages)
                    said = answer.choices[0].message.content or ""
                assert said == "abc"
            except Exception as e:
                failed.append(repr(e)[:300])
            else:
                answered[agent] += 1

    before = parts(cluster)
    callers = [asyncio.ensure_future(keep_calling(a, s)) for a in AGENTS for s in (True, False) for _ in range(soak(1, 4))]
    try:
        for _ in range(soak(1, 5)):
            report = await asyncio.to_thread(upgrade, cluster)
            assert report["agents"] >= len(AGENTS)
    finally:
        over.set()
        await asyncio.gather(*callers)
        await client.close()
    assert not failed, f"{len(failed)} of {answered.total() + len(failed)} calls failed: {failed[:3]}"
    after = parts(cluster)
    for part, pids in before.items():
        assert pids
        assert not pids & after[part], f"{part} is as it was"
    for agent in AGENTS:
        # One row for each call, and one for the call that woke it first.
        rows = eventually(lambda a=agent: cluster.usage(a), lambda found, a=agent: len(found) >= answered[a] + 1)
        assert Counter(row["outcome"] for row in rows) == {"ok": answered[agent] + 1}
    assert psutil.pid_exists(cluster.state.pid)
