"""A tenant that is made while the cluster runs: its agents, its usage, and what a suspension does to them."""

from __future__ import annotations

import httpx

from tests.servers.cluster import RunningCluster, eventually


def test_a_made_tenant_works_until_it_is_suspended_and_again_when_it_is_resumed(cluster: RunningCluster) -> None:
    """Its usage says tenant and project; suspended, gateways take its key for at most 2 seconds more, and nothing is lost."""
    body = {"tenant_id": "made", "plan": "standard"}
    assert cluster.http.post("/api/v1/tenants", json=body).status_code == 201
    assert cluster.http.post("/api/v1/tenants/made/projects", json={"project_id": "web"}).status_code == 201
    key = {"name": "web", "role": "developer", "tenant_id": "made", "project_id": "web"}
    made = cluster.http.post("/api/v1/keys", json=key).json()["key"]
    call = {"model": "clerk", "messages": [{"role": "user", "content": "hello"}]}
    agent = {"agent_id": "clerk", "capabilities": ["conversation"], "model": "scripted:echo"}
    headers = {"authorization": f"Bearer {made}"}
    with httpx.Client(base_url=cluster.state.http_url, headers=headers, timeout=60) as http:

        def ask() -> int:
            return http.post("/v1/chat/completions", json=call).status_code

        assert http.post("/api/v1/agents", json=agent).status_code == 201
        assert ask() == 200
        assert cluster.http.get("/api/v1/agents/clerk").status_code == 404
        cluster.http.patch("/api/v1/tenants/made", json={"state": "suspended"}).raise_for_status()
        eventually(ask, lambda status: status == 403, within_s=10)
        cluster.http.patch("/api/v1/tenants/made", json={"state": "active"}).raise_for_status()
        eventually(ask, lambda status: status == 200, within_s=10)
        assert http.delete("/api/v1/agents/clerk").status_code == 200
    rows = eventually(lambda: cluster.usage("clerk"), lambda found: len(found) >= 2)
    assert {(r["tenant_id"], r["project_id"]) for r in rows} == {("made", "web")}
