"""Registers a planner with the Python client, and asks it something: run it while `sovereign up` runs."""

from __future__ import annotations

import asyncio
import json

from actors.client import connect
from cluster.errors import SovereignError

POLICY = {
    "agent_type": "planner",
    "allowed_tools": ["web_search", "data_analysis", "report_generation"],
    "resource_limits": {"cpu": "1000m", "memory": "2Gi"},
    "network_access": ["external_apis"],
    "data_access_level": "strategic_read_only",
}


async def main() -> None:
    governance = await connect()
    registration = await governance.register_agent(
        agent_id="strategic-planner-001",
        capabilities=["market_analysis", "competitive_research", "trend_forecasting"],
        security_policy=POLICY,
        compliance_requirements=["SOC2", "GDPR"],
    )
    print(json.dumps(registration, indent=2))
    try:
        await governance.register_agent(agent_id="overreaching-001", capabilities=["market_analysis", "payment_execution"])
    except SovereignError as refused:
        print(f"\nRefused, as it should be:\n{refused}")
    await governance.aclose()


if __name__ == "__main__":
    asyncio.run(main())
