"""MCP's messages as the platform takes and makes them: JSON-RPC 2.0, of the handshake's revisions and of the stateless one.

Each agent that the caller may use is a tool. What a message says beyond what is here is refused by its name, save `_meta`,
which the protocol keeps open.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from pydantic import Field

from actors.wire import CallAnswer
from cluster.errors import SovereignError
from cluster.identity.ids import AgentId, Identifier
from serve_apps.json_rpc import JsonRpcError, M, Message, Strict, checked

# The revisions that begin with `initialize`, and those in which each request stands for itself.
HANDSHAKE: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
STATELESS: Final = ("2026-07-28",)
VERSIONS: Final = HANDSHAKE + STATELESS
VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
UNSUPPORTED_VERSION: Final = -32022
_SERVER: Final = {"name": "sovereign", "title": "Sovereign", "version": "1"}
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_OUTPUT: Final = {
    "type": "object",
    "properties": {"text": _TEXT, "input_tokens": _COUNT, "output_tokens": _COUNT, "tool_calls": _COUNT},
    "required": ["text", "input_tokens", "output_tokens", "tool_calls"],
}


class McpMessage(Message):
    """One message, which may say of itself how it wants to be taken."""

    @property
    def meta(self) -> dict[str, Any]:
        """What the client says about the message."""
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}


class ListParams(Strict):
    """Parameters of tools/list."""

    cursor: AgentId | None = None


class Arguments(Strict):
    """Arguments of every tool."""

    text: str = Field(min_length=1, max_length=1_000_000, description="What to ask the agent.")
    conversation_id: Identifier | None = Field(
        None, description="Continue this conversation: the agent remembers its turns. Without one it remembers nothing."
    )


class CallParams(Strict):
    """Parameters of tools/call."""

    name: str = Field(min_length=1, max_length=63)
    arguments: Arguments


_INPUT: Final = Arguments.model_json_schema()


def params_of(kind: type[M], message: McpMessage) -> M:
    """Return the message's parameters as a `kind`; raises JsonRpcError that names each wrong field."""
    return checked(kind, {name: value for name, value in message.params.items() if name != "_meta"})


def check_version(header: str, message: McpMessage) -> None:
    """Raise JsonRpcError when the request is of a revision that is not spoken here; without any it is of the oldest."""
    asked = message.meta.get(VERSION_KEY, header)
    if message.method != "initialize" and asked and asked not in VERSIONS:
        raise JsonRpcError(
            UNSUPPORTED_VERSION,
            "This revision of the protocol is not spoken here.",
            {"supported": list(VERSIONS), "requested": str(asked)[:64]},
        )


def initialized(message: McpMessage) -> dict[str, Any]:
    """Return the answer to `initialize`, in the revision that was asked for if it is spoken here, else in the newest."""
    asked = message.params.get("protocolVersion")
    version = asked if asked in HANDSHAKE else HANDSHAKE[-1]
    return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": _SERVER}


def discovered() -> dict[str, Any]:
    """Return the answer to `server/discover`."""
    return {
        "resultType": "complete",
        "supportedVersions": list(VERSIONS),
        "capabilities": {"tools": {}},
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": _SERVER},
    }


def tool_list(agents: list[dict[str, Any]], after: str) -> dict[str, Any]:
    """Return the agents as tools, and where the next page begins."""
    result = {"resultType": "complete", "tools": [_tool(agent) for agent in agents], "ttlMs": 0, "cacheScope": "private"}
    return result | ({"nextCursor": after} if after else {})


def _tool(agent: dict[str, Any]) -> dict[str, Any]:
    can = ", ".join(agent["capabilities"])
    return {
        "name": agent["agent_id"],
        "description": f"Asks the agent {agent['agent_id']}, of type {agent['agent_type']}: {can}.",
        "inputSchema": _INPUT,
        "outputSchema": _OUTPUT,
        "annotations": {"openWorldHint": True},
    }


def tool_result(answer: CallAnswer, text: str) -> dict[str, Any]:
    """Return what an agent answered; `text` is all of its words."""
    used = answer.usage
    structured = {
        "text": text,
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "tool_calls": used.tool_calls,
    }
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "structuredContent": structured,
        "isError": False,
    }


def tool_failure(error: SovereignError) -> dict[str, Any]:
    """Return why an agent did not answer, for the model that called it to read."""
    return {"resultType": "complete", "content": [{"type": "text", "text": str(error)}], "isError": True}


def progress(token: int | str, so_far: int, piece: str) -> bytes:
    """Return a notification that `so_far` pieces of the answer are there, with the newest."""
    params = {"progressToken": token, "progress": so_far, "message": piece}
    return orjson.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
