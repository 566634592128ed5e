"""The first answer of a passive agent, against a plain Ray actor that imports LangChain and builds the same agent.

Naive: a local Ray of its own with nothing warmed, an actor created and called once. Wake: the whole road over HTTP, with
the warm pool full. Both sides have their bytecode compiled. Sustained: first calls of many agents one after another,
without waiting for the pool.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.running import cluster, emit, progress
from tests.servers.cluster import RunningCluster, eventually

RUNS = 9
SUSTAINED = 12

NAIVE = """
import sys, time, ray
ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False, logging_level="ERROR")

class Naive:
    def __init__(self):
        from langchain.agents import create_agent
        from cluster.agents.scripted_model import ScriptedModel
        self.graph = create_agent(ScriptedModel(script="ok"), [])

    async def invoke(self, text):
        state = await self.graph.ainvoke({"messages": [{"role": "user", "content": text}]})
        return state["messages"][-1].content

ray.get(ray.remote(Naive).remote().invoke.remote("warm the page cache"))
for _ in range(int(sys.argv[1])):
    time.sleep(0.5)
    began = time.perf_counter()
    ray.get(ray.remote(Naive).options(num_cpus=0).remote().invoke.remote("hello"))
    print("ms", (time.perf_counter() - began) * 1000, flush=True)
"""


def naive() -> list[float]:
    """Return how long each first answer of a plain actor took, in milliseconds."""
    environment = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
    command = [sys.executable, "-c", NAIVE, str(RUNS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment(environment)).stdout
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith("ms ")]


def _environment(more: dict[str, str]) -> dict[str, str]:
    return os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"} | more


def wake(running: RunningCluster, agent: str) -> float:
    """Return how long the first answer of a passive agent took with the pool full, in milliseconds."""
    running.register(agent, cpu="1000m", model="scripted:ok").raise_for_status()
    eventually(lambda: warm(running) >= running.settings.warm_pool, within_s=60)
    began = time.perf_counter()
    running.ask(agent).raise_for_status()
    return (time.perf_counter() - began) * 1000


def warm(running: RunningCluster) -> int:
    """Count the idle workers that have finished to warm up: they wait, and use no CPU."""
    idle = running.processes("ray::IDLE")
    before = {p.pid: sum(p.cpu_times()[:2]) for p in idle}
    time.sleep(0.3)
    return sum(1 for p in idle if sum(p.cpu_times()[:2]) - before[p.pid] < 0.02)


def main() -> None:
    progress("plain actors")
    plain = naive()
    with cluster(num_cpus=64, warm_pool=2) as running:
        progress("wakes with the pool full")
        wake(running, "first")
        woken = [wake(running, f"wake-{i}") for i in range(RUNS)]
        progress("wakes without a pause")
        for i in range(SUSTAINED):
            running.register(f"sustained-{i}", cpu="1000m", model="scripted:ok").raise_for_status()
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            for answer in pool.map(lambda i: running.ask(f"sustained-{i}"), range(SUSTAINED)):
                answer.raise_for_status()
        sustained = SUSTAINED / (time.perf_counter() - began)
    naive_ms, wake_ms = statistics.median(plain), statistics.median(woken)
    emit(
        {
            "naive_ms_p50": round(naive_ms, 1),
            "wake_ms_p50": round(wake_ms, 1),
            "ratio": round(wake_ms / naive_ms, 4),
            "sustained_wakes_per_s": round(sustained, 2),
        }
    )


if __name__ == "__main__":
    main()
