"""Several processes for one agent, and several agents for one process: calls find their way, and none is lost or told twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.servers.cluster import RunningCluster, eventually
from tests.sizes import soak


def say(cluster: RunningCluster, agent: str, text: str) -> Any:
    """Return what a turn of the agent's one conversation used; fails unless it was answered."""
    script = json.dumps({"script": [{"say": text}]})
    answer = cluster.ask(agent, script, metadata={"conversation_id": "c"})
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens"]


def pids(cluster: RunningCluster) -> set[int]:
    return {p.pid for p in cluster.processes("AgentActor")}


def test_replicas_follow_the_load_and_conversations_keep_their_order(crowd: RunningCluster) -> None:
    """A crowd gets more replicas and gives them back; each call is answered and counted once, each turn sees all before it.

    Controls: cluster/agents/scaling.py desired_replicas, actors/directory.py choose, actors/agent_processes.py
    AgentProcesses.retire (a replica that goes ends its calls first).
    """
    assert crowd.register("many", max_replicas=3, target_queue=2, cpu="500m").status_code == 201
    stop = threading.Event()
    seen: dict[str, list[int]] = {f"c{n}": [] for n in range(6)}
    calls: list[str] = []

    def converse(conversation: str) -> None:
        while not stop.is_set():
            script = json.dumps({"script": [{"sleep_s": 0.2}, {"say": "ok"}]})
            answer = crowd.ask("many", script, metadata={"conversation_id": conversation})
            assert answer.status_code == 200, answer.text
            seen[conversation].append(answer.json()["usage"]["prompt_tokens"])
            calls.append(answer.json()["id"].removeprefix("chatcmpl-"))

    def replicas() -> int:
        return sum(a["agent_id"] == "many" for a in crowd.http.get("/api/v1/status").json()["live"])

    with ThreadPoolExecutor(len(seen)) as pool:
        clients = [pool.submit(converse, name) for name in seen]
        try:
            eventually(replicas, lambda n: n >= 2)
        finally:
            stop.set()
        for client in clients:
            client.result()
    eventually(replicas, lambda n: n == 1)
    assert all(turns == sorted(set(turns)) for turns in seen.values()), seen
    rows = eventually(lambda: crowd.usage("many"), lambda rows: len(rows) >= len(calls))
    assert Counter(r["invocation_id"] for r in rows if r["kind"] == "final") == Counter(calls)
    assert len(rows) == len(calls)
    assert crowd.http.delete("/api/v1/agents/many").status_code == 200


def test_agents_share_processes_and_keep_their_conversations(crowd: RunningCluster) -> None:
    """Six agents on two processes: none is ended or started, each remembers its own conversation and nobody else's.

    Controls: actors/places.py Places._take_over, actors/agent.py AgentActor.vacate.
    """
    names = [f"crowd-{n}" for n in range(6)]
    for name in names:
        crowd.register(name, cpu="1000m")
    first = [say(crowd, name, f"I am {name}.") for name in names]
    held = pids(crowd)
    second = [say(crowd, name, "And again.") for name in names]
    assert pids(crowd) == held
    assert len(held) == 2
    assert len(set(first)) == 1, "an agent saw more than its own words"
    assert len(set(second)) == 1
    assert second[0] > first[0]
    for name in names:
        rows = eventually(lambda n=name: crowd.usage(n), lambda rows: len(rows) == 2)
        assert sorted(r["writer_epoch"] for r in rows) == [1, 2]
        assert {r["kind"] for r in rows} == {"final"}
    assert eventually(lambda: crowd.audit(reason="rebound to crowd-2"))


def test_killing_governance_between_two_agents_leaves_no_orphan(crowd: RunningCluster) -> None:
    """While processes go from agent to agent governance is killed: all agents stay callable, and no process is nobody's."""
    names = [f"crowd-{n}" for n in range(6)]
    for name in names:
        crowd.register(name, cpu="1000m")
    stop, answered = threading.Event(), dict.fromkeys(names, 0)

    def call(mine: list[str]) -> None:
        while not stop.is_set():
            for name in mine:
                answered[name] += crowd.ask(name, '{"script": [{"say": "ok"}]}').status_code == 200

    callers = [threading.Thread(target=call, args=(names[n::2],)) for n in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(soak(1, 20)):
            before = dict(answered)
            eventually(lambda b=before: min(answered[n] - b[n] for n in names) >= 1, within_s=60)
            for process in crowd.processes("GovernanceActor"):
                process.kill()
        before = dict(answered)
        eventually(lambda: min(answered[n] - before[n] for n in names) >= 1, within_s=60)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    live = crowd.http.get("/api/v1/status").json()["live"]
    assert len(eventually(lambda: pids(crowd), lambda p: len(p) == len(live))) == len(live)
