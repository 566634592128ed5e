"""A2A 1.0 over JSON-RPC: a path for each agent, its card below it, and tasks that outlive the connection that asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cluster.admission.strict_json import parse_strict_json
from cluster.errors import NotFoundError
from cluster.identity.ids import AgentId, uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.runs.run import Run
from cluster.runs.run_store import Which
from serve_apps import a2a, json_rpc
from serve_apps.a2a import A2aMessage
from serve_apps.a2a_stream import task_stream
from serve_apps.edge import Edge, until_gone
from serve_apps.event_stream import EventStream
from serve_apps.exchange import Exchange
from serve_apps.json_rpc import MEDIA_TYPE, JsonRpcError, answer_to, checked, error_to, read_message
from serve_apps.langgraph_stream import kept_alive
from serve_apps.runs import RunRequest

PATH: Final = "/a2a/{agent_id}"
CARD: Final = f"{PATH}/.well-known/agent-card.json"
_PUSH: Final = "TaskPushNotificationConfig"


class A2aRoutes:
    """The handlers below /a2a. An agent that the caller may not see is not there."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._methods: dict[str, Callable[[_Asked], Awaitable[dict[str, Any]]]] = {
            "SendMessage": self._send,
            "GetTask": self._get,
            "ListTasks": self._list,
            "CancelTask": self._cancel,
        }

    async def agent_card(self, request: Request, exchange: Exchange) -> Response:
        """GET /a2a/{agent_id}/.well-known/agent-card.json: what the agent is, and how it is spoken to."""
        principal = self._edge.authenticate(exchange, Scope.AGENTS_LIST)
        agent_id = AgentId.parse(request.path_params["agent_id"], "agent_id")
        agent = await self._edge.governance.call("get", principal.to_json(), agent_id)
        url = f"{self._edge.settings.public_url.rstrip('/')}/a2a/{agent_id}"
        return Response(orjson.dumps(a2a.card(agent, url)), media_type=MEDIA_TYPE)

    async def a2a_message(self, request: Request, exchange: Exchange) -> Response:
        """POST /a2a/{agent_id}: one message of the Agent2Agent protocol, 1.0."""
        edge = self._edge
        principal = edge.authenticate(exchange, Scope.AGENTS_INVOKE)
        body = await edge.body(request)
        agent_id = AgentId.parse(request.path_params["agent_id"], "agent_id")
        document = parse_strict_json(body, max_bytes=edge.settings.max_body_bytes)
        # A task of an agent that is not there would only fail where nobody looks.
        await edge.governance.call("get", principal.to_json(), agent_id)
        message: A2aMessage | None = None
        try:
            message = read_message(A2aMessage, document)
            a2a.check_version(request.headers.get("a2a-version", ""))
            return await self._answered(_Asked(request, exchange, principal, agent_id, message))
        except JsonRpcError as error:
            return Response(error_to(message.id if message else None, error), media_type=MEDIA_TYPE)

    async def _answered(self, asked: _Asked) -> Response:
        id_, method = asked.id, asked.message.method
        if method == "SendStreamingMessage":
            return self._stream(asked, await self._start(asked, checked(a2a.SendParams, asked.message.params)))
        if method == "SubscribeToTask":
            run = await self._named(asked, checked(a2a.TaskParams, asked.message.params).id)
            if run.status.ended:
                raise a2a.failed(a2a.UNSUPPORTED, f"Task {run.run_id} has ended; GetTask returns it.")
            return self._stream(asked, run)
        if method.endswith((_PUSH, f"{_PUSH}s")):
            raise a2a.no_push()
        if method == "GetExtendedAgentCard":
            raise a2a.failed(a2a.NO_CARD, "The card is all there is to say of this agent.")
        answer = self._methods.get(method)
        if answer is None:
            raise JsonRpcError(json_rpc.METHOD_NOT_FOUND, f"There is no method {method} here.")
        return Response(answer_to(id_, await answer(asked)), media_type=MEDIA_TYPE)

    async def _send(self, asked: _Asked) -> dict[str, Any]:
        params = checked(a2a.SendParams, asked.message.params)
        wanted = params.configuration
        run = await self._start(asked, params, cancel_on_disconnect=not wanted.return_immediately)
        if not wanted.return_immediately:
            # Whoever leaves before the answer knows no task to come back to: it ends with the connection.
            run = await until_gone(asked.request, asyncio.ensure_future(self._edge.runs.wait(asked.principal, run.run_id)))
        return {"task": a2a.task(run, history_length=wanted.history_length)}

    async def _get(self, asked: _Asked) -> dict[str, Any]:
        params = checked(a2a.TaskParams, asked.message.params)
        return a2a.task(await self._named(asked, params.id), history_length=params.history_length)

    async def _list(self, asked: _Asked) -> dict[str, Any]:
        params = checked(a2a.ListParams, asked.message.params)
        statuses = {state: status for status, state in a2a.STATES.items()}
        if params.status is not None and params.status not in statuses:
            return a2a.tasks([], 0, params)  # states that no task here is ever in
        after = params.status_timestamp_after
        which = Which(
            agent_id=asked.agent_id,
            thread_id=params.context_id,
            status=statuses[params.status] if params.status else None,
            updated_after_us=int(after.timestamp() * 1e6) if after else None,
        )
        runs = self._edge.runs
        total = await runs.count_runs(asked.principal, "a2a", which)
        found = await runs.list_runs(asked.principal, "a2a", which, after=params.page_token, limit=params.page_size)
        return a2a.tasks(found, total, params)

    async def _cancel(self, asked: _Asked) -> dict[str, Any]:
        run = await self._named(asked, checked(a2a.TaskParams, asked.message.params).id)
        if run.status.ended:
            raise a2a.failed(a2a.NOT_CANCELABLE, f"Task {run.run_id} has ended.")
        return a2a.task(await self._edge.runs.cancel(asked.principal, run.run_id))

    async def _start(self, asked: _Asked, params: a2a.SendParams, *, cancel_on_disconnect: bool = False) -> Run:
        params.check()
        said, exchange = params.message, asked.exchange
        if said.task_id:
            run = await self._named(asked, said.task_id)
            raise a2a.failed(
                a2a.UNSUPPORTED, f"Task {run.run_id} takes no more messages; send them in its context, {run.thread_id}."
            )
        return await self._edge.runs.start(
            asked.principal,
            RunRequest(
                kind="a2a",
                agent_id=asked.agent_id,
                messages=[{"role": "user", "content": said.text}],
                deadline_s=exchange.deadline_s(self._edge.settings.call_timeout_s),
                thread_id=said.context_id or uuid7(),
                metadata={"message_id": said.message_id},
                cancel_on_disconnect=cancel_on_disconnect,
                run_id=exchange.invocation_id,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            ),
        )

    def _stream(self, asked: _Asked, run: Run) -> Response:
        """Return the task's updates; whoever loses the connection comes back by SubscribeToTask, so the task goes on."""
        events = self._edge.runs.events(asked.principal, run.run_id, cancel_on_disconnect=False)
        until = asyncio.get_running_loop().time() + self._edge.settings.call_timeout_s
        blocks = kept_alive(task_stream(asked.id, run, events), until=until)
        return EventStream(blocks, deadline_at=until, on_end=_nothing)

    async def _named(self, asked: _Asked, task_id: str) -> Run:
        missing = NotFoundError(f"There is no task {task_id} of this agent.")
        try:
            run = await self._edge.runs.get(asked.principal, task_id)
            if (run.kind, run.agent_id) != ("a2a", asked.agent_id):
                raise missing
        except NotFoundError:
            self._edge.record(missing, asked.exchange, PATH)
            raise a2a.failed(a2a.TASK_NOT_FOUND, str(missing)) from None
        return run


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what is known of whoever sent it."""

    request: Request
    exchange: Exchange
    principal: Principal
    agent_id: AgentId
    message: A2aMessage

    @property
    def id(self) -> int | str:
        """What the answer is called by; raises JsonRpcError for a notification, of which the protocol has none."""
        if self.message.id is None:
            raise JsonRpcError(json_rpc.INVALID_REQUEST, "A2A has no notifications: a request needs an id.")
        return self.message.id


async def _nothing() -> None:
    """The events hold nothing beyond themselves."""
