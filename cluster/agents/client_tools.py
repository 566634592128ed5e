"""Functions that the caller of an agent runs itself: the model may call them, which ends the agent's turn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import FieldError, InvalidRequestError

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage


@dataclass(frozen=True, slots=True)
class ClientTools:
    """What of the caller's a model sees beside the agent's own tools, for one call."""

    # As OpenAI has them: {"name", "description"?, "parameters"?, "strict"?}; the names differ.
    functions: list[dict[str, Any]]
    # The model has to call something, or this one function, rather than answer.
    required: bool = False
    named: str = ""
    # Whether one turn may end with several calls.
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What the model calls them by."""
        return frozenset(str(f["name"]) for f in self.functions)

    @property
    def choice(self) -> dict[str, Any]:
        """The argument of LangChain's `bind_tools` that says what must be called."""
        return {"tool_choice": self.named or "any"} if self.named or self.required else {}

    def offered(self, own: Iterable[str]) -> list[dict[str, Any]]:
        """Return them as models take them; raises InvalidRequestError when one is named as a tool of the agent's own is."""
        if taken := sorted(self.names & set(own)):
            wrong = [FieldError("tools", f"{name} is a tool of this agent") for name in taken]
            raise InvalidRequestError("A function has the name of a tool that the agent has itself.", errors=wrong)
        return [{"type": "function", "function": f} for f in self.functions]

    def called(self, message: AIMessage) -> list[dict[str, str]]:
        """Return the calls of `message` that are the caller's to run, as {"id", "name", "arguments"}, and keep only those.

        The agent's own tools that were called in the same breath don't run: the caller could not send their results back
        with its own. The model calls them again when it has those.
        """
        names = self.names
        calls = [c for c in message.tool_calls if c["name"] in names]
        if not calls:
            return []
        message.tool_calls = calls = calls if self.parallel else calls[:1]
        return [{"id": c["id"] or "", "name": c["name"], "arguments": json.dumps(c["args"], ensure_ascii=False)} for c in calls]
