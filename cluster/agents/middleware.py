"""LangChain middleware that decides about each tool call before it runs: only what was granted, by its exact name."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import AgentState, ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from cluster.agents.call import CURRENT_CALL, CURRENT_METER
from cluster.agents.model_failure import out_of_memory, redact
from cluster.errors import SovereignError
from cluster.telemetry.tracing import span

_log = logging.getLogger(__name__)

# Takes the tool's name as the model wrote it, and why it was refused.
OnRefusal = Callable[[str, str], None]


class GovernanceMiddleware(AgentMiddleware[AgentState[Any], None]):
    """Lets tool calls of `granted` through, counts them, and answers every other with an error and a call of `on_refusal`.

    Fails closed: a name that is not in the grant letter by letter (an alias, another case, a tool that a prompt made up)
    never reaches a tool. A tool that fails becomes an error result, which the model sees; the agent goes on.
    """

    def __init__(self, granted: frozenset[str], on_refusal: OnRefusal | None = None) -> None:
        super().__init__()
        self._granted = granted
        self._on_refusal = on_refusal

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Return the tool's result, or an error result that says why there is none."""
        name = str(request.tool_call["name"])
        if name not in self._granted or request.tool is None:
            if self._on_refusal is not None:
                self._on_refusal(name[:100], "the tool is not granted to this agent")
            return _error(request, f"The tool {name[:100]!r} is not granted to this agent. It was not run.")
        meter = CURRENT_METER.get()
        if (call := CURRENT_CALL.get(None)) is not None and call.budget is not None:
            call.budget.check_tool(meter.quantities())
        meter.tool_calls += 1
        began_ns = time.monotonic_ns()
        try:
            with span(f"execute_tool {name}", attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}):
                return await handler(request)
        except GraphBubbleUp:
            raise
        except MemoryError:
            raise out_of_memory() from None
        except SovereignError as e:
            return _error(request, redact(str(e)))
        except Exception as e:
            _log.warning("tool %s failed", name, exc_info=True)
            return _error(request, f"The tool {name} failed: {type(e).__name__}: {redact(str(e))}")
        finally:
            meter.tools_us += (time.monotonic_ns() - began_ns) // 1_000


def _error(request: ToolCallRequest, text: str) -> ToolMessage:
    return ToolMessage(text, name=request.tool_call["name"], tool_call_id=request.tool_call["id"] or "", status="error")
