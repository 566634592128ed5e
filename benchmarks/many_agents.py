"""A hundred thousand registered agents, and a load on a few hundred of them with processes for a few.

    python -m benchmarks.many_agents [--registered 100000]

Registered: through the real registrar, with policy, journal and ledger on disk, by many threads; over HTTP it would be the
same work and several times slower. What an agent that is only registered costs is what this process holds more of
afterwards, the ledger's cache included: governance has nothing else of it. Look-ups are of random agents, when all are there.
Load: clients call agents by Zipf's law over the whole HTTP road, on a cluster over the same ledger with room for a few
processes. Each call is answered, or refused with 429 or 503 and Retry-After, and is tried again then. Whatever else
happens to a call, an answered one without its one usage row, and a row that nobody was answered for, is a lost call.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq

from benchmarks.running import emit, progress
from cluster import wiring
from cluster.admission.registrar import Registrar
from cluster.agents.memory_watchdog import held_bytes
from cluster.agents.registration import parse_registration
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import Settings
from tests.governors import changed_policies
from tests.servers.cluster import RunningCluster, eventually, running_cluster

# Those that are called, and those that are only there: their CPU is held to what they declare, and one quota ends at 1024.
CALLED, QUIET = TenantId("default"), TenantId("quiet")
CPU_MILLI = {CALLED: 100, QUIET: 10}
# What each agent declares. Memory is what bounds the number of processes here.
MEMORY_MIB = 64
MAX_CALLED = 10_000
THREADS, BATCH = 32, 500
# So many in a round; the best of the rounds counts, because others may use the machine.
LOOKUPS, ROUNDS = 10_000, 3
# What a process of an agent takes at most of this machine's memory, and how many are enough.
PROCESS_BYTES, PROCESSES = 300 << 20, 20
# Zipf's exponent: of many services' objects, about this.
EXPONENT = 1.0


def name(number: int) -> AgentId:
    """Return the id of an agent."""
    return AgentId(f"bench-{number:06}")


def tenant_of(number: int) -> TenantId:
    """Return whose agent it is."""
    return CALLED if number < MAX_CALLED else QUIET


def register(registrar: Registrar, numbers: range) -> None:
    """Register these agents."""

    def one(number: int) -> None:
        tenant = tenant_of(number)
        who = Principal(tenant, ProjectId("default"), "key:bench", frozenset(Scope))
        body: dict[str, Any] = {"agent_id": name(number), "capabilities": ["conversation"], "model": "scripted:ok"}
        limits = {"cpu": f"{CPU_MILLI[tenant]}m", "memory": f"{MEMORY_MIB}Mi"}
        registrar.register(who, parse_registration(body | {"security_policy": {"resource_limits": limits}}))

    # In parts, because what waits in a pool takes more memory than what is measured here.
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(numbers.start, numbers.stop, BATCH):
            for _ in pool.map(one, range(first, min(first + BATCH, numbers.stop))):
                pass


def lookup_us_p99(registrar: Registrar, registered: int) -> float:
    """Return the 99th percentile of a look-up of one agent among all, in microseconds."""
    return min(_round(registrar, registered, seed) for seed in range(ROUNDS))


def _round(registrar: Registrar, registered: int, seed: int) -> float:
    rng, took = random.Random(seed), []
    for _ in range(LOOKUPS):
        number = rng.randrange(registered)
        began = time.perf_counter_ns()
        registrar.get(tenant_of(number), name(number))
        took.append((time.perf_counter_ns() - began) / 1_000)
    return sorted(took)[int(len(took) * 0.99)]


def fill(settings: Settings, registered: int) -> dict[str, float]:
    """Register all, and return what an idle agent costs and how fast it is found."""
    wiring.sign_policies(settings)
    registrar = wiring.build_registrar(settings)
    registrar.recover()
    first = min(1_000, registered // 2)
    register(registrar, range(first))  # whatever is made once is made now
    lookup_us_p99(registrar, first)
    gc.collect()
    before, began = held_bytes(), time.perf_counter()
    few = lookup_us_p99(registrar, first)
    register(registrar, range(first, registered))
    rate = (registered - first) / (time.perf_counter() - began)
    many = lookup_us_p99(registrar, registered)
    gc.collect()
    each = max(0, held_bytes() - before) / (registered - first)
    progress(f"{rate:.0f} registrations/s; a look-up among {first} takes {few:.0f} us at p99, among {registered} {many:.0f} us")
    registrar.close()
    return {"bytes_per_idle_agent": round(each, 1), "lookup_us_p99": round(many, 1)}


def zipf(agents: int, touched: int, calls: int) -> list[int]:
    """Return the agents to call, in order: `touched` different ones of `agents`, each at least once, the rest by Zipf's law."""
    rng = random.Random(2)
    weights = [1 / rank**EXPONENT for rank in range(1, agents + 1)]
    chosen: dict[int, None] = {}
    sums = list(itertools.accumulate(weights))
    while len(chosen) < touched:
        chosen.update(dict.fromkeys(rng.choices(range(agents), cum_weights=sums, k=touched - len(chosen))))
    among = list(chosen)
    rest = rng.choices(among, weights=[weights[a] for a in among], k=max(0, calls - touched))
    wanted = among + rest
    rng.shuffle(wanted)
    return wanted


@dataclass
class Seen:
    """What the clients saw."""

    answered: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def load(running: RunningCluster, wanted: list[int], clients: int) -> tuple[Seen, float]:
    """Make all calls, each again until it is answered, and return what was seen and how long it took."""
    seen, todo = Seen(), iter(wanted)

    def client() -> None:
        with httpx.Client(base_url=running.state.http_url, headers=running.headers, timeout=120) as http:
            for number in _shared(todo, seen.lock):
                while not _call(http, name(number), seen):
                    pass

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return seen, time.perf_counter() - began


def _shared(todo: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            number = next(todo, None)
        if number is None:
            return
        yield number


def _call(http: httpx.Client, agent: str, seen: Seen) -> bool:
    """Call once; returns False when the call was refused and is to be tried again."""
    body = {"model": agent, "messages": [{"role": "user", "content": "hello"}]}
    try:
        answer = http.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as e:
        with seen.lock:
            seen.lost[type(e).__name__] += 1
        return True
    if answer.status_code in (429, 503) and (wait := answer.headers.get("retry-after", "")).isdigit():
        with seen.lock:
            seen.refused[str(answer.status_code)] += 1
        time.sleep(min(int(wait), 1) * random.uniform(0.1, 0.5))
        return False
    with seen.lock:
        if answer.status_code == 200:
            seen.answered.append(answer.json()["id"].removeprefix("chatcmpl-"))
        else:
            seen.lost[str(answer.status_code)] += 1
    return True


def rows(running: RunningCluster, stream: str, columns: list[str]) -> list[dict[str, Any]]:
    """Return these columns of all rows of a stream in the lake, raw and with every duplicate."""
    folder = running.settings.home / "lake" / stream / "raw" / "v1"
    found: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.parquet")):
        found += pq.read_table(path, columns=columns, partitioning=None).to_pylist()
    return found


def finals(running: RunningCluster) -> list[dict[str, Any]]:
    """Return the final usage rows."""
    return [r for r in rows(running, "usage", ["kind", "invocation_id", "agent_id", "writer_epoch"]) if r["kind"] == "final"]


def measure(running: RunningCluster, wanted: list[int], clients: int) -> dict[str, Any]:
    """Return what the load came to, counted by the clients and in the lake."""
    seen, seconds = load(running, wanted, clients)
    answered = Counter(seen.answered)
    found = eventually(lambda: finals(running), lambda rows: len(rows) >= len(seen.answered), within_s=120)
    told = Counter(r["invocation_id"] for r in found)
    uncounted = sum(((answered - told) + (told - answered)).values())
    wakes = len({(r["agent_id"], r["writer_epoch"]) for r in found})
    rebinds = sum((r["reason"] or "").startswith("rebound to ") for r in rows(running, "audit", ["reason"]))
    if seen.lost:
        progress(f"lost: {dict(seen.lost)}")
    return {
        "sustained_wakes_per_s": round(wakes / seconds, 2),
        "rebinds_per_s": round(rebinds / seconds, 2),
        "calls_lost": sum(seen.lost.values()) + uncounted,
        "calls_answered": len(seen.answered),
        "calls_per_s": round(len(seen.answered) / seconds, 1),
        "refusals": sum(seen.refused.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, default=100_000, help="agents in the ledger")
    parser.add_argument("--agents", type=int, default=10_000, help="agents that the load may choose from")
    parser.add_argument("--touched", type=int, default=300, help="different agents that it calls")
    parser.add_argument("--calls", type=int, default=3_000, help="calls in all")
    parser.add_argument("--clients", type=int, default=8, help="clients at the same time")
    parser.add_argument("--processes", type=int, default=0, help="room for so many; 0: as memory allows, at most 20")
    options = parser.parse_args()
    processes = options.processes or max(2, min(PROCESSES, psutil.virtual_memory().available // PROCESS_BYTES))
    agents = min(options.agents, options.registered, MAX_CALLED)
    count = options.registered
    quota = {"cpu": "1024", "memory": f"{count * MEMORY_MIB}Mi", "agents": count}
    with tempfile.TemporaryDirectory(prefix="sov-bench-") as folder:
        policies = changed_policies(Path(folder), "plans.yaml", {"standard.quota": quota})
        changed_policies(Path(folder), "tenants.yaml", {QUIET: {"plan": "standard", "active": True}})
        home = Path(folder) / "home"
        progress(f"registering {options.registered} agents")
        result: dict[str, object] = {"registered": options.registered}
        result |= fill(Settings.load(home=home, policy_dir=policies), options.registered)
        progress(f"{options.calls} calls of {options.touched} agents on {processes} processes")
        room = processes * MEMORY_MIB << 20
        with running_cluster(home, policy_dir=policies, num_cpus=PROCESSES, memory_bytes=room, warm_pool=2) as running:
            result |= measure(running, zipf(agents, min(options.touched, agents), options.calls), options.clients)
    emit(result | {"processes": processes})


if __name__ == "__main__":
    main()
