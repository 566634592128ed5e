"""A job: registers two agents through governance, asks each, and prints what they answered as one line of JSON.

Run it inside the cluster: `sovereign job submit --wait -- python examples/jobs/research.py`, or by `ray job submit`.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from actors.client import GovernanceClient, connect

TOPICS = ("the market for sodium batteries", "the market for heat pumps")


async def ask(governance: GovernanceClient, number: int, topic: str, model: str | None) -> dict[str, object]:
    """Register one researcher, which is done already when the job ran before, and ask it."""
    agent_id = f"researcher-{number}"
    await governance.register_agent(agent_id, ["market_analysis"], model=model)
    answer = await governance.invoke(agent_id, f"In one sentence: what is new in {topic}?")
    return {"agent_id": agent_id, "topic": topic, "answer": answer.text, "tokens": answer.usage.output_tokens}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="The researchers' model, as local:smollm2 [default: the platform's].")
    model = parser.parse_args().model
    governance = await connect()
    try:
        findings = await asyncio.gather(*(ask(governance, n, topic, model) for n, topic in enumerate(TOPICS, start=1)))
    finally:
        await governance.aclose()
    print(json.dumps({"status": "done", "findings": findings}))


if __name__ == "__main__":
    asyncio.run(main())
