"""Calls a second through the whole road, against the same road without the platform.

Both sides run in one cluster under the same HAProxy and flags, each with one gateway replica and the same
`create_agent` graph over the same scripted model. Rounds alternate in ABBA order; the figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import streaming
from benchmarks.burst import TEXT, burst
from benchmarks.load import Measured, wrk
from benchmarks.running import authenticate, cluster, emit, progress
from tests.governors import changed_policies
from tests.servers.cluster import RunningCluster

SPREAD = 16
# What calls may bring: the first is usual, and the ratios of the other are printed once beside it.
CREDENTIALS = ("jwt", "key")


def body(agent_id: str, text: str = TEXT) -> dict[str, object]:
    return {"model": agent_id, "messages": [{"role": "user", "content": text}]}


class Sides:
    """The two roads to compare, over so many rounds of so many seconds."""

    def __init__(self, running: RunningCluster, rounds: int, seconds: float) -> None:
        self._running = running
        self.rounds = rounds
        self.seconds = seconds
        self._urls = {
            "governed": f"{running.state.http_url}/v1/chat/completions",
            "bare": f"{running.state.http_url}/bare/v1/chat/completions",
        }

    def run(
        self, side: str, agents: list[str], connections: int, seconds: float = 0, text: str = TEXT, *, stream: bool = False
    ) -> Measured:
        bodies, seconds = [body(a, text) | ({"stream": True} if stream else {}) for a in agents], seconds or self.seconds
        return wrk(self._urls[side], bodies, connections=connections, seconds=seconds, headers=self._running.headers)

    def compare(self, agents: list[str], connections: int, **how: Any) -> dict[str, list[Measured]]:
        """Return each side's rounds, measured in ABBA order."""
        measured: dict[str, list[Measured]] = {"governed": [], "bare": []}
        for side in self.turns():
            measured[side].append(self.run(side, agents, connections, **how))
        return measured

    def turns(self) -> Iterator[str]:
        """Yield whose turn it is, in ABBA order."""
        for r in range(self.rounds):
            yield from ("bare", "governed") if r % 2 == 0 else ("governed", "bare")

    def streams(self, agent: str) -> dict[str, float]:
        """Return how streamed answers compare: calls a second at 1 and 64 connections, the worse of both, and the first piece."""
        at = {c: summary(self.compare([agent], c, text=streaming.script(streaming.PIECES), stream=True)) for c in (1, 64)}
        first: dict[str, list[float]] = {"governed": [], "bare": []}
        headers = self._running.headers
        for side in self.turns():
            first[side].append(streaming.first_chunk_ms(self._urls[side], headers, agent, self.seconds))
        ratios = [g / b for g, b in zip(first["governed"], first["bare"], strict=True)]
        pieces = [streaming.chunks_per_s(self._urls["governed"], headers, agent) for _ in range(self.rounds)]
        return {
            "first_chunk_ratio": round(statistics.median(ratios), 3),
            "calls_ratio": min(summed["ratio"] for summed in at.values()),
            "chunks_per_s": round(statistics.median(pieces), 1),
            "first_chunk_ms": round(statistics.median(first["governed"]), 2),
            **{f"c{c}_{name}": summed[name] for c, summed in at.items() for name in ("bare_rps", "governed_rps")},
        }


def summary(measured: dict[str, list[Measured]]) -> dict[str, float]:
    governed, bare = measured["governed"], measured["bare"]
    pairs = list(zip(governed, bare, strict=True))
    return {
        "bare_rps": round(statistics.median(m.rps for m in bare), 1),
        "governed_rps": round(statistics.median(m.rps for m in governed), 1),
        "ratio": round(statistics.median(g.rps / b.rps for g, b in pairs), 3),
        "bare_p99_ms": round(statistics.median(m.p99_ms for m in bare), 2),
        "governed_p99_ms": round(statistics.median(m.p99_ms for m in governed), 2),
        "p99_ratio": round(statistics.median(g.p99_ms / b.p99_ms for g, b in pairs), 3),
    }


def slow_mix(sides: Sides, agent: str) -> float:
    """Return the ratio of the ordinary calls' p50 beside 10 % of calls that take a second to their p50 alone."""
    ratios = []
    for _ in range(max(3, sides.rounds // 2)):
        alone = sides.run("governed", [agent], 16)
        # A call of a second holds its connection that long: a tenth of the rate needs a tenth of the rate in connections.
        slow = max(1, round(alone.rps / 9))
        script = '{"script": [{"sleep_s": 1}, {"say": "late"}]}'
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(sides.run, "governed", [agent], slow, sides.seconds + 2, script)
            time.sleep(1.5)
            mixed = sides.run("governed", [agent], 16, sides.seconds - 1)
            beside.result()  # without the slow calls there was no mix
        ratios.append(mixed.p50_ms / alone.p50_ms)
    return round(statistics.median(ratios), 3)


AGENT_ONLY = """
import asyncio, sys, time
import uvloop
from langchain.agents import create_agent
from cluster.agents.scripted_model import ScriptedModel
async def main(text, seconds):
    graph = create_agent(ScriptedModel(script="steps"), [])
    async def run(until):
        n = 0
        while time.perf_counter() < until:
            await graph.ainvoke({"messages": [{"role": "user", "content": text}]})
            n += 1
        return n
    await run(time.perf_counter() + 1)
    began = time.perf_counter()
    n = await run(began + seconds)
    print(n / (time.perf_counter() - began))
uvloop.run(main(sys.argv[1], float(sys.argv[2])))
"""


def agent_only(seconds: float) -> float:
    """Return calls a second of the same graph in a loop in one process."""
    output = subprocess.run(
        [sys.executable, "-c", AGENT_ONLY, TEXT, str(seconds)], capture_output=True, text=True, check=True
    ).stdout
    return float(output)


def raw_actors_allowed(folder: Path) -> Path:
    """Return policies by which jobs of the default tenant may have actors of their own."""
    return changed_policies(folder, "plans.yaml", {"standard.raw_actors": True})


def start_bare(running: RunningCluster, agents: list[str]) -> None:
    import ray
    from ray import serve

    from actors.ray_connection import connect_to
    from actors.ray_internals import JOB_CONFIG, JOB_ID_KEY
    from benchmarks.bare import BareGateway, start_bare_agent

    # As a job of a tenant that may have actors of its own; anybody else's are ended.
    os.environ[JOB_CONFIG] = json.dumps({"metadata": {JOB_ID_KEY: "bare"}})
    connect_to(running.settings)
    for name in agents:
        start_bare_agent(name)
    bare: Any = BareGateway  # Serve's decorators made a deployment of the class, which its types don't say
    serve.run(bare.bind(), name="bare", route_prefix="/bare")
    ray.shutdown()  # a driver that outlives its cluster is ended by Ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each side in a round, from 2 up")
    parser.add_argument(
        "--auth", choices=CREDENTIALS, default=CREDENTIALS[0], help="what calls bring: access tokens, or API keys"
    )
    options = parser.parse_args()
    if options.seconds < 2:
        parser.error("--seconds must be 2 or more: a call of the slow mix takes one")
    agents = [f"bench-{i}" for i in range(SPREAD)]
    with (
        tempfile.TemporaryDirectory(prefix="sov-bench-") as folder,
        cluster(num_cpus=64, gateway_max_replicas=1, policy_dir=raw_actors_allowed(Path(folder))) as running,
    ):
        progress("registering and waking agents on both sides")
        for name in agents:
            running.register(name, cpu="1000m").raise_for_status()
            running.ask(name).raise_for_status()
        start_bare(running, agents)
        sides = Sides(running, options.rounds, options.seconds)
        authenticate(running, options.auth)
        for side in ("bare", "governed"):
            sides.run(side, agents[:1], 16, 2)
        result: dict[str, object] = {"auth": options.auth}
        alone: list[float] = []
        at_64: list[Measured] = []
        for connections in (1, 16, 64):
            progress(f"{connections} connections to one agent")
            authenticate(running, options.auth)  # a token lasts for some minutes only
            measured = sides.compare(agents[:1], connections)
            result[f"c{connections}"] = summary(measured)
            alone.append(agent_only(options.seconds))
            at_64 = measured["governed"]
        result["agent_only_per_s"] = round(statistics.median(alone), 1)
        result["of_agent_only"] = round(statistics.median(m.rps for m in at_64) / statistics.median(alone), 3)
        progress(f"64 connections over {SPREAD} agents")
        authenticate(running, options.auth)
        result["spread"] = summary(sides.compare(agents, 64))
        progress("streamed answers")
        result["stream"] = sides.streams(agents[0])
        authenticate(running, options.auth)
        progress("a tenth of the calls take a second")
        result["slow_mix"] = {"p50_ratio": slow_mix(sides, agents[0])}
        progress("the burst of one tenant")
        result["burst"] = burst(running, options.rounds, options.seconds)
        for other in CREDENTIALS:
            if other != options.auth:
                progress(f"the same with {other}")
                authenticate(running, other)
                result[f"with_{other}"] = {f"c{c}": summary(sides.compare(agents[:1], c)) for c in (1, 64)}
    emit(result)


if __name__ == "__main__":
    main()
