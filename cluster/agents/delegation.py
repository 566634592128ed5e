"""The tool by which an agent hands a question to another agent of its tenant, with no right that it lacks itself."""

from __future__ import annotations

from typing import Final, Protocol

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field

from cluster.agents.call import CURRENT_CALL, Call
from cluster.agents.catalogue import MAX_RESULT_CHARS

ASK_AGENT: Final = "ask_agent"


class Peers(Protocol):
    """The other agents, as this one reaches them."""

    async def ask(self, agent_id: str, question: str, call: Call) -> str:
        """Return the agent's answer, as a part of `call` and within its time.

        Raises AdmissionDeniedError when the policy does not let this agent hand work to that one, NotFoundError, and what
        the other agent raised. Cancelling it ends the other agent's work.
        """
        ...


class AskAgentArguments(BaseModel):
    """Arguments of ask_agent."""

    model_config = ConfigDict(extra="forbid")

    agent_id: str = Field(min_length=1, max_length=63, description="The id of the agent to ask.")
    question: str = Field(min_length=1, max_length=100_000, description="All that it needs to know: it sees nothing else.")


def ask_agent_tool(peers: Peers) -> BaseTool:
    """Return the tool; it runs in the agent's own process, because it runs nothing but the platform's code."""

    async def ask(agent_id: str, question: str) -> str:
        text = await peers.ask(agent_id, question, CURRENT_CALL.get())
        return text if len(text) <= MAX_RESULT_CHARS else text[:MAX_RESULT_CHARS] + "… (cut: ask for less)"

    return StructuredTool(
        name=ASK_AGENT,
        description="Ask another agent of the same owner, and get its answer. Use it for work that another agent is made for.",
        args_schema=AskAgentArguments,
        coroutine=ask,
    )
