"""Registers a planner with the Python client, and another that is refused: run it while `sovereign up` runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from actors.client import connect
from cluster.errors import SovereignError

PLANNER = json.loads(Path(__file__).with_name("strategic_planner.json").read_text())


async def main() -> None:
    governance = await connect()
    registration = await governance.register_agent(**PLANNER)
    print(json.dumps(registration, indent=2))
    try:
        await governance.register_agent(agent_id="overreaching-001", capabilities=["market_analysis", "payment_execution"])
    except SovereignError as refused:
        print(f"\nRefused, as it should be:\n{refused}")
    await governance.aclose()


if __name__ == "__main__":
    asyncio.run(main())
