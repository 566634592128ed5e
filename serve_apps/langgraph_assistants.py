"""Assistants: each agent is one by itself; others name an agent and say how it is to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from starlette.requests import Request
from starlette.responses import Response

from cluster.clock import utc
from cluster.errors import ConflictError, NotFoundError
from cluster.identity.ids import AgentId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run_store import Document
from serve_apps.edge import Edge
from serve_apps.exchange import Exchange
from serve_apps.langgraph import AssistantCount, AssistantCreate, AssistantPatch, AssistantSearch, Config
from serve_apps.langgraph_replies import matches, parsed, reply

KIND: Final = "assistant"
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Chosen:
    """The assistant that a run names."""

    assistant_id: str
    agent_id: str
    # Fields of an Invocation.
    options: dict[str, Any]


def own_assistant_id(tenant: str, agent_id: str) -> str:
    """Return the id of the assistant that an agent is by itself."""
    return str(uuid5(NAMESPACE_URL, f"sovereign:{tenant}/{agent_id}"))


def options_of(config: Config | None) -> dict[str, Any]:
    """Return what a configuration says of how to answer, as fields of an Invocation."""
    return config.configurable.model_dump(exclude_none=True) if config and config.configurable else {}


class LangGraphAssistants:
    """The handlers under /langgraph/assistants."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def search_assistants(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/assistants/search: the tenant's assistants, each agent among them."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        wanted = await parsed(self._edge, request, AssistantSearch)
        found = await self._found(principal, wanted)
        found.sort(key=lambda a: (a[wanted.sort_by], a["assistant_id"]), reverse=wanted.sort_order == "desc")
        end = wanted.offset + wanted.limit
        return reply(found[wanted.offset : end], headers={"x-pagination-next": str(end)} if end < len(found) else None)

    async def count_assistants(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/assistants/count: how many there are."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        return reply(len(await self._found(principal, await parsed(self._edge, request, AssistantCount))))

    async def create_assistant(self, request: Request, exchange: Exchange) -> Response:
        """POST /langgraph/assistants: give an agent one more assistant, with settings of its own."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, AssistantCreate)
        agent_id = (await self.choose(principal, body.graph_id)).agent_id
        id_ = body.assistant_id or str(uuid4())
        said = {
            "graph_id": agent_id,
            "name": body.name or agent_id,
            "description": body.description,
            "metadata": body.metadata or {},
            "config": _config(body.config),
        }
        with suppress(NotFoundError):
            there = await self._show(principal, id_)
            if body.if_exists == "do_nothing":
                return reply(there)
            raise ConflictError(f"There is an assistant {id_} already.", hint="Ask with if_exists=do_nothing to have that one.")
        return reply(_shown(await self._edge.runs.put_document(principal, KIND, id_, said, 0)))

    async def show_assistant(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/assistants/{assistant_id}: one of them."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        return reply(await self._show(principal, request.path_params["assistant_id"]))

    async def show_schemas(self, request: Request, exchange: Exchange) -> Response:
        """GET /langgraph/assistants/{assistant_id}/schemas: what its runs take and give."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_READ)
        assistant = await self._show(principal, request.path_params["assistant_id"])
        messages = {"type": "object", "properties": {"messages": {"type": "array", "items": {"type": "object"}}}}
        state = messages | {"title": "State", "required": ["messages"]}
        schemas = {f"{name}_schema": state for name in ("input", "output", "state")}
        config = Config.model_json_schema()
        return reply({"graph_id": assistant["graph_id"], **schemas, "config_schema": config, "context_schema": None})

    async def change_assistant(self, request: Request, exchange: Exchange) -> Response:
        """PATCH /langgraph/assistants/{assistant_id}: change one that was made here."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await parsed(self._edge, request, AssistantPatch)
        document = await self._made(principal, request.path_params["assistant_id"])
        said = body.model_dump(include={"name", "description"}, exclude_none=True)
        if body.graph_id is not None:
            said["graph_id"] = (await self.choose(principal, body.graph_id)).agent_id
        if body.config is not None:
            said["config"] = _config(body.config)
        said["metadata"] = document.json["metadata"] | (body.metadata or {})
        runs = self._edge.runs
        return reply(_shown(await runs.put_document(principal, KIND, document.id, document.json | said, document.version)))

    async def delete_assistant(self, request: Request, exchange: Exchange) -> Response:
        """DELETE /langgraph/assistants/{assistant_id}: remove one that was made here; its threads stay."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        document = await self._made(principal, request.path_params["assistant_id"])
        await self._edge.runs.delete_document(principal, KIND, document.id)
        return reply({})

    async def choose(self, principal: Principal, name: str) -> Chosen:
        """Return the assistant that a run names by its UUID or as an agent's id; raises NotFoundError."""
        if not _is_uuid(name):
            await self._edge.governance.call("get", principal.to_json(), AgentId.parse(name, "assistant_id"))
            return Chosen(own_assistant_id(principal.tenant, name), name, {})
        shown = await self._show(principal, name)
        if shown["assistant_id"] != own_assistant_id(principal.tenant, shown["graph_id"]):
            await self._edge.governance.call("get", principal.to_json(), shown["graph_id"])
        return Chosen(shown["assistant_id"], shown["graph_id"], shown["config"].get("configurable", {}))

    async def _show(self, principal: Principal, id_: str) -> dict[str, Any]:
        with suppress(NotFoundError):
            return _shown(await self._edge.runs.get_document(principal, KIND, id_))
        async for agent in self._agents(principal):
            if id_ in (agent["agent_id"], own_assistant_id(principal.tenant, agent["agent_id"])):
                return _of_agent(principal, agent)
        raise _missing()

    async def _made(self, principal: Principal, id_: str) -> Document:
        try:
            return await self._edge.runs.get_document(principal, KIND, id_)
        except NotFoundError:
            shown = await self._show(principal, id_)
        raise ConflictError(
            f"This assistant is the agent {shown['graph_id']} itself.", hint="Change the agent, or make an assistant of your own."
        )

    async def _found(self, principal: Principal, wanted: AssistantCount) -> list[dict[str, Any]]:
        every = [_of_agent(principal, agent) async for agent in self._agents(principal)]
        after = ""
        while page := await self._edge.runs.list_documents(principal, KIND, after=after, limit=_PAGE):
            every += [_shown(document) for document in page]
            after = page[-1].id
        return [
            a
            for a in every
            if wanted.graph_id in (None, a["graph_id"], own_assistant_id(principal.tenant, a["graph_id"]))
            and (wanted.name is None or wanted.name.casefold() in a["name"].casefold())
            and matches(a["metadata"], wanted.metadata)
        ]

    async def _agents(self, principal: Principal) -> AsyncIterator[dict[str, Any]]:
        after = ""
        while True:
            page = await self._edge.governance.call("list", principal.to_json(), after, _PAGE)
            for agent in page["agents"]:
                yield agent
            if not (after := page["next"]):
                return


def _of_agent(principal: Principal, agent: dict[str, Any]) -> dict[str, Any]:
    """Return the assistant that an agent is by itself."""
    return {
        "assistant_id": own_assistant_id(principal.tenant, agent["agent_id"]),
        "graph_id": agent["agent_id"],
        "name": agent["agent_id"],
        "description": None,
        "metadata": {"created_by": "system"},
        "config": {},
        "context": {},
        "version": 1,
        "created_at": agent["created_at"],
        "updated_at": agent["created_at"],
    }


def _shown(document: Document) -> dict[str, Any]:
    times = {"created_at": utc(document.created_us).isoformat(), "updated_at": utc(document.updated_us).isoformat()}
    return {"assistant_id": document.id, "context": {}, "version": document.version} | document.json | times


def _config(config: Config | None) -> dict[str, Any]:
    return {"configurable": options} if (options := options_of(config)) else {}


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _missing() -> NotFoundError:
    return NotFoundError("There is no such assistant.")
