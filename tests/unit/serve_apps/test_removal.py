"""The removal of an agent on record, as whoever asked for it over HTTP can find it again."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cluster.journal.audit_event import AuditAction
from cluster.settings import Settings
from tests.gateways import gateway
from tests.governors import facts

AGENT = {"agent_id": "planner", "capabilities": ["conversation"], "model": "scripted:echo"}


async def test_a_removal_is_on_record_with_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the request id that the route hands to governance. The answer's id leads to each fact of what was done."""
    settings = Settings.load(home=tmp_path / "home")
    async with gateway(settings, monkeypatch) as app:
        key = (settings.secret_dir / "api-key").read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", headers=headers) as client:
            (await client.post("/api/v1/agents", json=AGENT)).raise_for_status()
            removed = await client.delete("/api/v1/agents/planner")
            assert removed.status_code == 200
        said = [e for e in facts(settings.home) if e.action == AuditAction.LIFECYCLE_TRANSITION]
        assert [(e.outcome.value, e.request_id) for e in said] == [
            ("allowed", removed.headers["x-request-id"]),
            ("done", removed.headers["x-request-id"]),
        ]
