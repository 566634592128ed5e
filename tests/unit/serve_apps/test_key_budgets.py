"""A key's budget at the door: what a client hears when it is spent, and what `/api/v1/limits` shows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.limits.callers import CallerTerms, shown_to
from cluster.limits.terms import Bound
from cluster.limits.windows import Window
from tests.answering import answering
from tests.leasing import Cluster

MANAGER = Principal(TenantId("acme"), ProjectId("default"), "key:manager", frozenset(Scope))


async def test_a_call_past_its_keys_budget_is_refused_with_the_key_named(tmp_path: Path) -> None:
    """429 with the account, its bound and its use; what was spent is shown, and the agent was not asked."""
    cluster = Cluster(tmp_path / "limits", tenant="acme")
    cluster.rules.tokens = 1_000_000
    cluster.rules.callers["key.1"] = CallerTerms((Bound("key", "acme.1", Window.TOTAL, "tokens", 5_000),))
    body = {"model": "planner", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
    leases = cluster.process()
    async with answering(tmp_path, leases) as (app, _):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            first = await client.post("/v1/chat/completions", json=body)
            used = first.json()["usage"]["total_tokens"]
            async with asyncio.timeout(5):
                while not any(a["used"] for a in leases.use(shown_to(MANAGER))["accounts"]):  # noqa: ASYNC110  # told by the limiter
                    await asyncio.sleep(0.01)
            refused = await client.post("/v1/chat/completions", json=body | {"max_tokens": 4_950})
            shown = (await client.get("/api/v1/limits")).json()
    cluster.leases.clear()
    await cluster.close()
    assert (first.status_code, refused.status_code, refused.json()["error"]["code"]) == (200, 429, "budget_exceeded")
    assert "budget of key 1 has no room" in refused.json()["error"]["message"]
    account = next(a for a in shown["accounts"] if a["account"] == "key.acme.1.total.tokens")
    assert (account["limit"], account["used"]) == (5_000, used)
