"""What one tenant's burst costs the others: their latency with it, against their latency without.

Each tenant has usually a tenth of what the cluster can do. The burst is ten times that, as many clients would send it that know
nothing of each other: what cannot be answered waits or is refused, and the others' calls are not to notice.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from benchmarks.load import Measured, wrk
from benchmarks.running import access_token
from tests.servers.cluster import RunningCluster

OTHERS = 3
KEYS = 8
USUAL = 0.1
TIMES = 10
# So many that a client's wait for an answer hardly changes how much is sent.
CONNECTIONS = 64
# How long the burst is on before the others are measured, and after.
EDGE_S = 1.0
TEXT = "What moved the market for small language models this quarter, and why?"


@dataclass(frozen=True)
class Tenant:
    """A tenant with one agent and the headers of several keys' calls."""

    headers: list[dict[str, str]]
    agent_id: str = "clerk"

    @property
    def bodies(self) -> list[dict[str, object]]:
        """One for each of the headers."""
        return [{"model": self.agent_id, "messages": [{"role": "user", "content": TEXT}]}] * len(self.headers)


def make_tenant(running: RunningCluster, tenant_id: str) -> Tenant:
    """Make a tenant, keys of it and its agent by the API, and have the agent answer once."""
    url = running.state.http_url
    running.http.post("/api/v1/tenants", json={"tenant_id": tenant_id, "plan": "standard"}).raise_for_status()
    tokens = []
    for number in range(KEYS):
        wanted = {"name": f"k{number}", "role": "developer", "tenant_id": tenant_id}
        made = running.http.post("/api/v1/keys", json=wanted)
        made.raise_for_status()
        tokens.append(access_token(url, made.json()["key"]))
    tenant = Tenant([{"authorization": f"Bearer {token}"} for token in tokens])
    size = {"resource_limits": {"cpu": "1000m", "memory": "256Mi"}}
    agent = {"agent_id": tenant.agent_id, "capabilities": ["market_analysis"], "model": "scripted:steps", "security_policy": size}
    with httpx.Client(base_url=url, headers=tenant.headers[0], timeout=60) as http:
        http.post("/api/v1/agents", json=agent).raise_for_status()
        http.post("/v1/chat/completions", json=tenant.bodies[0]).raise_for_status()
    return tenant


def burst(running: RunningCluster, rounds: int, seconds: float) -> dict[str, float]:
    """Return the ratio of the others' p95 beside the burst to their p95 without it, the median over rounds in ABBA order."""
    loud, *others = (make_tenant(running, f"tenant-{i}") for i in range(OTHERS + 1))
    url = f"{running.state.http_url}/v1/chat/completions"
    their_bodies = [b for tenant in others for b in tenant.bodies]
    their_headers = [h for tenant in others for h in tenant.headers]
    capacity = wrk(url, their_bodies, connections=CONNECTIONS, seconds=seconds, headers=their_headers).rps
    usual = USUAL * capacity

    def measure() -> Measured:
        rate = OTHERS * usual
        return wrk(url, their_bodies, connections=CONNECTIONS, seconds=seconds, headers=their_headers, rate=rate)

    def loudly(times: float, for_s: float) -> Measured:
        connections = int(CONNECTIONS * times)
        return wrk(
            url,
            loud.bodies,
            connections=connections,
            seconds=for_s,
            headers=loud.headers,
            rate=times * usual,
            may_refuse=True,
        )

    quiet: list[Measured] = []
    beside: list[Measured] = []
    sent: list[Measured] = []
    with ThreadPoolExecutor(1) as pool:
        for r in range(rounds):
            for times in (1, TIMES) if r % 2 == 0 else (TIMES, 1):
                noise = pool.submit(loudly, times, seconds + 2 * EDGE_S)
                time.sleep(EDGE_S)
                (quiet if times == 1 else beside).append(measure())
                (sent if times != 1 else []).append(noise.result())
    return {
        "others_p95_ratio": round(statistics.median(b.p95_ms / q.p95_ms for b, q in zip(beside, quiet, strict=True)), 3),
        "others_p95_ms": round(statistics.median(q.p95_ms for q in quiet), 2),
        "others_p95_beside_ms": round(statistics.median(b.p95_ms for b in beside), 2),
        "capacity_rps": round(capacity, 1),
        "burst_rps": round(statistics.median(s.rps for s in sent), 1),
        "burst_refused": sum(s.refused for s in sent),
    }
