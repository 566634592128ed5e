"""The real A2A client against a gateway in this process: cards, messages, tasks, streams, and what is not offered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from serve_apps.app import Application
from tests.answering import Agents, answering

URL = "http://gateway/a2a/planner"
DONE = a2a.TASK_STATE_COMPLETED
ENDLESS = {"sleep_s": 100}, {"say": "never"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Application, Agents]]:
    async with answering(tmp_path) as (app, agents):
        yield app, agents


@pytest.fixture
async def http(served: tuple[Application, Agents]) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": "Bearer x", "a2a-version": "1.0"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served[0]), headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
async def plain(http: httpx.AsyncClient) -> Client:
    return await connect(http, streaming=False)


async def connect(http: httpx.AsyncClient, **how: Any) -> Client:
    """Return a client that read the agent's card, as any does."""
    card = await A2ACardResolver(http, URL).get_agent_card()
    card.supported_interfaces[0].url = URL
    return ClientFactory(ClientConfig(httpx_client=http, **how)).create(card)


def asked(*steps: dict[str, Any], **more: Any) -> a2a.SendMessageRequest:
    text = json.dumps({"script": steps})
    return a2a.SendMessageRequest(
        message=a2a.Message(message_id=str(uuid4()), role=a2a.ROLE_USER, parts=[a2a.Part(text=text)], **more)
    )


async def sent(client: Client, request: a2a.SendMessageRequest) -> a2a.Task:
    """Return the task of a message that is not streamed."""
    (event,) = [event async for event in client.send_message(request)]
    return event.task


def text_of(task: a2a.Task) -> str:
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


async def first_in(client: Client, state: Any) -> a2a.Task:
    """Return the first task that comes into a state."""
    while not (found := await client.list_tasks(a2a.ListTasksRequest(status=state))).tasks:
        pass
    return found.tasks[0]


async def test_a_card_says_how_the_agent_is_spoken_to(http: httpx.AsyncClient) -> None:
    """Under the path of the agent; of one that is not there, there is none."""
    card = await A2ACardResolver(http, URL).get_agent_card()
    (way,) = card.supported_interfaces
    assert (card.name, way.protocol_binding, way.protocol_version) == ("planner", "JSONRPC", "1.0")
    assert way.url.endswith("/a2a/planner")
    assert (card.capabilities.streaming, card.capabilities.push_notifications) == (True, False)
    assert [skill.id for skill in card.skills] == ["conversation"]
    assert (await http.get("http://gateway/a2a/nobody/.well-known/agent-card.json")).status_code == 404


async def test_a_message_is_answered_by_a_task_that_can_be_read_again(plain: Client) -> None:
    """With the answer as its artifact and the message that asked as its history."""
    request = asked({"say": "good day"})
    task = await sent(plain, request)
    assert (task.status.state, text_of(task)) == (DONE, "good day")
    assert task.context_id
    assert [m.message_id for m in task.history] == [request.message.message_id]
    again = await plain.get_task(a2a.GetTaskRequest(id=task.id))
    assert again == task
    assert not (await plain.get_task(a2a.GetTaskRequest(id=task.id, history_length=0))).history


async def test_a_context_is_a_conversation(plain: Client) -> None:
    """The agent remembers what was said in it, and in no other."""
    first = await sent(plain, asked({"say": "one"}))
    second = await sent(plain, asked({"say": "two"}, context_id=first.context_id))
    await sent(plain, asked({"say": "elsewhere"}))
    assert second.context_id == first.context_id
    listed = await plain.list_tasks(a2a.ListTasksRequest(context_id=first.context_id, include_artifacts=True))
    assert [(task.id, text_of(task)) for task in listed.tasks] == [(second.id, "two"), (first.id, "one")]
    assert listed.total_size == 2


async def test_lists_have_pages(plain: Client) -> None:
    """The newest first; without their artifacts unless those are asked for; by state and moment."""
    made = [(await sent(plain, asked({"say": str(i)}))).id for i in range(3)]
    first = await plain.list_tasks(a2a.ListTasksRequest(page_size=2))
    rest = await plain.list_tasks(a2a.ListTasksRequest(page_size=2, page_token=first.next_page_token))
    assert [task.id for task in (*first.tasks, *rest.tasks)] == made[::-1]
    assert (first.total_size, len(first.tasks), text_of(first.tasks[0])) == (3, 2, "")
    for state, count in ((DONE, 3), (a2a.TASK_STATE_WORKING, 0), (a2a.TASK_STATE_INPUT_REQUIRED, 0)):
        assert (await plain.list_tasks(a2a.ListTasksRequest(status=state))).total_size == count
    late = a2a.ListTasksRequest()
    late.status_timestamp_after.CopyFrom(first.tasks[0].status.timestamp)
    late.status_timestamp_after.seconds += 1
    assert (await plain.list_tasks(late)).total_size == 0


async def test_an_answer_streams_piece_by_piece(http: httpx.AsyncClient) -> None:
    """The task, that it works, its answer, how it ended."""
    client = await connect(http)
    events = [event async for event in client.send_message(asked({"stream": ["a ", "b ", "c"]}))]
    assert [event.WhichOneof("payload") for event in events][:2] == ["task", "status_update"]
    updates = [event.artifact_update for event in events if event.WhichOneof("payload") == "artifact_update"]
    assert "".join(part.text for update in updates for part in update.artifact.parts) == "a b c"
    assert [update.append for update in updates] == [False] + [True] * (len(updates) - 1)
    assert [update.last_chunk for update in updates] == [False] * (len(updates) - 1) + [True]
    assert events[-1].status_update.status.state == DONE
    assert {event.status_update.task_id for event in events[1:] if event.WhichOneof("payload") == "status_update"} == {
        events[0].task.id
    }


async def test_an_agent_that_fails_has_a_task_that_says_why(plain: Client) -> None:
    """It is the task that failed, and not the request."""
    task = await sent(plain, asked({"fail": "no such luck"}))
    assert task.status.state == a2a.TASK_STATE_FAILED
    assert task.status.message.parts[0].text


async def test_a_task_goes_on_without_its_client_and_is_followed_again(http: httpx.AsyncClient) -> None:
    """Whoever does not wait has the task at once, comes back for the whole answer, and ends what never would."""
    task = await sent(await connect(http, streaming=False, polling=True), asked({"sleep_s": 0.2}, {"stream": ["still ", "here"]}))
    assert task.status.state in (a2a.TASK_STATE_SUBMITTED, a2a.TASK_STATE_WORKING)
    client = await connect(http)
    events = [event async for event in client.subscribe(a2a.SubscribeToTaskRequest(id=task.id))]
    assert events[0].task.id == task.id
    assert "".join(p.text for e in events for p in e.artifact_update.artifact.parts) == "still here"
    with pytest.raises(UnsupportedOperationError, match="GetTask"):
        [event async for event in client.subscribe(a2a.SubscribeToTaskRequest(id=task.id))]


async def test_a_cancelled_task_has_stopped(http: httpx.AsyncClient) -> None:
    """The answer is the task as it ended, and what has ended can't be cancelled."""
    client = await connect(http, streaming=False, polling=True)
    task = await sent(client, asked(*ENDLESS))
    ended = await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
    assert ended.status.state == a2a.TASK_STATE_CANCELED
    with pytest.raises(TaskNotCancelableError):
        await client.cancel_task(a2a.CancelTaskRequest(id=task.id))


async def test_whoever_leaves_before_the_answer_ends_the_task(http: httpx.AsyncClient, plain: Client) -> None:
    """Control: cancel_on_disconnect. It knows no task to come back to; a stream's reader knows one, and its task goes on."""
    client = await connect(http, streaming=False)
    waiting = asyncio.ensure_future(sent(client, asked(*ENDLESS)))
    await first_in(plain, a2a.TASK_STATE_WORKING)
    waiting.cancel()
    assert (await first_in(plain, a2a.TASK_STATE_CANCELED)).id


async def test_what_is_not_offered_is_refused_by_the_protocols_own_name(plain: Client) -> None:
    """Parts that are no text, answers in other forms, notifications, messages to a task that has ended."""
    picture = asked({"say": "x"})
    picture.message.parts.append(a2a.Part(url="https://example.com/p.png", media_type="image/png"))
    audio = asked({"say": "x"})
    audio.configuration.accepted_output_modes.append("audio/wav")
    told = asked({"say": "x"})
    told.configuration.task_push_notification_config.url = "https://example.com/hook"
    ended = await sent(plain, asked({"say": "over"}))
    refused: list[tuple[a2a.SendMessageRequest, type[A2AError]]] = [
        (picture, ContentTypeNotSupportedError),
        (audio, ContentTypeNotSupportedError),
        (told, PushNotificationNotSupportedError),
        (asked({"say": "more"}, task_id=ended.id), UnsupportedOperationError),
        (asked({"say": "more"}, task_id="nothing"), TaskNotFoundError),
    ]
    for request, kind in refused:
        with pytest.raises(kind):
            await sent(plain, request)
    for call in (
        plain.create_task_push_notification_config(a2a.TaskPushNotificationConfig(task_id=ended.id, url="https://x.example")),
        plain.list_task_push_notification_configs(a2a.ListTaskPushNotificationConfigsRequest(task_id=ended.id)),
    ):
        with pytest.raises(PushNotificationNotSupportedError):
            await call


async def test_only_a_message_makes_a_task(http: httpx.AsyncClient, plain: Client) -> None:
    """Control: A2aRoutes._named. What was started by another protocol is none, though it is the same agent's."""
    run = await http.post("http://gateway/api/v1/agents/planner/runs", json={"text": json.dumps({"script": [{"say": "x"}]})})
    with pytest.raises(TaskNotFoundError):
        await plain.get_task(a2a.GetTaskRequest(id=run.json()["run_id"]))


async def test_threat_21_a_task_is_its_tenants_and_its_agents(
    served: tuple[Application, Agents], plain: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls: A2aRoutes._named, the tenant in the run store. Another's is not there, in the words of one that is not."""
    task = await sent(plain, asked({"say": "a secret"}))
    rival = Principal(TenantId("rival"), ProjectId("default"), "key:2", served[1].scopes)
    monkeypatch.setattr(served[1], "authenticate", lambda _: rival)
    for call in (plain.get_task, plain.cancel_task):
        with pytest.raises(TaskNotFoundError) as foreign:
            await call(a2a.GetTaskRequest(id=task.id))  # type: ignore[operator]  # both name a task alike
        with pytest.raises(TaskNotFoundError) as absent:
            await call(a2a.GetTaskRequest(id=task.id[::-1]))  # type: ignore[operator]
        assert str(foreign.value).replace(task.id, "") == str(absent.value).replace(task.id[::-1], "")
    assert (await plain.list_tasks(a2a.ListTasksRequest())).total_size == 0


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ([], -32600),
        ({"jsonrpc": "1.0", "id": 1, "method": "GetTask"}, -32600),
        ({"jsonrpc": "2.0", "method": "GetTask", "params": {"id": "x"}}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "x"}}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": {"parts": []}}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"pageSize": 1000}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "GetExtendedAgentCard", "params": {}}, -32007),
    ],
)
async def test_what_is_no_message_is_an_error_that_says_why(http: httpx.AsyncClient, document: Any, code: int) -> None:
    """As JSON-RPC has errors, with what is wrong by its name."""
    answer = await http.post(URL, json=document)
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, code)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("version", ["", "0.3", "2.0"])
async def test_another_version_is_refused(http: httpx.AsyncClient, version: str) -> None:
    """A client that names none speaks 0.3."""
    asks = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x"}}
    answer = await http.post(URL, json=asks, headers={"a2a-version": version})
    assert answer.json()["error"]["code"] == -32009
    assert answer.json()["error"]["data"][0]["reason"] == "VERSION_NOT_SUPPORTED"
