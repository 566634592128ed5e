"""LangGraph's run API as its own client finds it: the real SDK, gateway and governance, and an agent that answers from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from langgraph_sdk.errors import APIStatusError, BadRequestError, ConflictError, NotFoundError

from serve_apps import langgraph_stream, langgraph_threads
from tests.langgraph_world import ANSWER, HELLO, World, heard, langgraph_world, said


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with langgraph_world(tmp_path, monkeypatch) as world:
        yield world


def refused_fields(error: APIStatusError) -> list[str]:
    assert isinstance(error.body, dict)
    return [e["field"] for e in error.body["errors"]]


async def test_a_thread_keeps_what_its_runs_asked_and_were_answered(world: World) -> None:
    """wait gives the whole state; get_state, get and history tell the same; the agent goes on with one conversation."""
    sdk = world.sdk
    thread = await world.thread()
    assert (await sdk.threads.get_state(thread))["values"] == {"messages": []}
    first = await sdk.runs.wait(thread, "planner", input={"messages": [{"type": "human", "content": "hello", "id": "m1"}]})
    assert said(first) == [("human", "hello"), ("ai", ANSWER)]
    assert first["messages"][0]["id"] == "m1"
    assert first["messages"][1]["usage_metadata"] == {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    second = await sdk.runs.wait(thread, "planner", input=HELLO)
    assert said(second) == said(first) * 2
    state = await sdk.threads.get_state(thread)
    assert state["values"] == second == (await sdk.threads.get(thread))["values"]
    history = await sdk.threads.get_history(thread)
    assert [said(each["values"]) for each in history] == [said(second), said(first)]
    assert history[0] == state == await sdk.threads.get_state(thread, checkpoint_id=state["checkpoint"]["checkpoint_id"])
    assert history[0]["parent_checkpoint"] == history[1]["checkpoint"]
    assert await sdk.threads.get_history(thread, before=history[0]["checkpoint"]["checkpoint_id"]) == history[1:]
    (one, two) = world.agent.orders
    assert one.thread_id == two.thread_id is not None
    assert one.messages == two.messages == HELLO["messages"]


async def test_a_thread_that_is_made_again_begins_with_nothing(world: World) -> None:
    """The agent remembers by another name then, and the runs are gone."""
    thread = await world.thread()
    await world.sdk.runs.wait(thread, "planner", input=HELLO)
    await world.sdk.threads.delete(thread)
    with pytest.raises(NotFoundError):
        await world.sdk.threads.get(thread)
    again = await world.sdk.threads.create(thread_id=thread)
    assert (again["values"], again["status"]) == ({"messages": []}, "idle")
    await world.sdk.runs.wait(thread, "planner", input=HELLO)
    assert len({order.thread_id for order in world.agent.orders}) == 2


async def test_threads_are_made_found_and_labelled(world: World) -> None:
    """create with if_exists, search and count by metadata, ids and status, update that merges."""
    threads = world.sdk.threads
    one = await threads.create(metadata={"team": "x", "n": 1})
    assert await threads.create(thread_id=one["thread_id"], if_exists="do_nothing") == one
    with pytest.raises(ConflictError, match="exists already"):
        await threads.create(thread_id=one["thread_id"])
    two = await threads.create(metadata={"team": "y"})
    changed = await threads.update(one["thread_id"], metadata={"n": 2})
    assert changed["metadata"] == {"team": "x", "n": 2}
    # A search has no messages.
    changed, two = changed | {"values": None}, two | {"values": None}
    assert await threads.search(metadata={"team": "y"}) == [two]
    assert await threads.search(ids=[one["thread_id"]]) == [changed]
    both = await threads.search(sort_by="created_at", sort_order="asc")
    assert both == [changed, two]
    assert await threads.search(sort_by="created_at", sort_order="asc", limit=1, offset=1) == [two]
    assert [await threads.count(), await threads.count(metadata={"n": 2}), await threads.count(status="busy")] == [2, 1, 0]
    world.agent.fails = True
    await world.sdk.runs.wait(two["thread_id"], "planner", input=HELLO, raise_error=False)
    assert [t["thread_id"] for t in await threads.search(status="error")] == [two["thread_id"]]


async def test_a_run_streams_in_each_mode(world: World) -> None:
    """values, messages, messages-tuple, updates and events, in one stream, each event with an id of its own."""
    thread = await world.thread()
    modes = ["values", "messages", "messages-tuple", "updates", "events"]
    parts = await heard(world.sdk.runs.stream(thread, "planner", input=HELLO, stream_mode=modes))
    names = [part.event for part in parts]
    assert names[:3] == ["metadata", "values", "events"]
    assert names[-5:] == ["messages/complete", "updates", "events", "values", "end"]
    assert len({part.id for part in parts}) == len(parts)
    of = {name: [part.data for part in parts if part.event == name] for name in names}
    assert said(of["values"][0]) == [("human", "hello")]
    assert said(of["values"][-1]) == [("human", "hello"), ("ai", ANSWER)]
    assert of["messages/partial"][-1][0]["content"] == of["messages/complete"][0][0]["content"] == ANSWER
    assert "".join(chunk["content"] for chunk, _ in of["messages"]) == ANSWER
    assert {about["run_id"] for _, about in of["messages"]} == {of["metadata"][0]["run_id"]}
    assert said(of["updates"][0]["planner"]) == [("ai", ANSWER)]
    streamed = [e["data"]["chunk"]["content"] for e in of["events"] if e["event"] == "on_chat_model_stream"]
    assert "".join(streamed) == ANSWER
    for mode, own in {
        "values": {"values"},
        "messages": {"messages/metadata", "messages/partial", "messages/complete"},
        "messages-tuple": {"messages"},
        "updates": {"updates"},
        "events": {"events"},
    }.items():
        alone: Any = world.sdk.runs.join_stream(thread, of["metadata"][0]["run_id"], stream_mode=mode)  # type: ignore[arg-type]
        assert {part.event for part in await heard(alone)} == own | {"metadata", "end"}
    ids = {message["id"] for message, _ in of["messages"]}
    assert ids == {of["values"][-1]["messages"][-1]["id"], *of["messages/metadata"][0]}


async def test_an_event_has_the_same_id_for_everybody(world: World) -> None:
    """Whoever comes back after any event gets what is left of it, in whichever modes, and nothing twice."""
    thread = await world.thread()
    run = await world.sdk.runs.create(thread, "planner", input=HELLO, stream_mode=["messages", "values"])
    await world.sdk.runs.join(thread, run["run_id"])

    def again(**more: Any) -> Any:
        return heard(world.sdk.runs.join_stream(thread, run["run_id"], **more))

    whole = await again()
    assert [part.event for part in whole][-3:] == ["messages/complete", "values", "end"]
    for number, part in enumerate(whole):
        assert await again(last_event_id=part.id) == whole[number + 1 :]
    assert await again(last_event_id="-1") == whole
    assert await again(stream_mode="values") == [p for p in whole if not p.event.startswith("messages")]
    with pytest.raises(BadRequestError, match="Last-Event-ID"):
        await again(last_event_id="7")


async def test_a_run_that_fails_is_told_as_the_sdk_raises_it(world: World) -> None:
    """`wait` raises, a stream ends with `error`, and the thread and the run say so."""
    world.agent.fails = True
    thread = await world.thread()
    with pytest.raises(Exception, match=r"agent_failed: It raised\."):
        await world.sdk.runs.wait(thread, "planner", input=HELLO)
    parts = await heard(world.sdk.runs.stream(thread, "planner", input=HELLO))
    assert [part.event for part in parts] == ["metadata", "values", "error", "end"]
    assert parts[-2].data == {"error": "agent_failed", "message": "It raised."}
    assert [run["status"] for run in await world.sdk.runs.list(thread)] == ["error", "error"]
    assert (await world.sdk.threads.get(thread))["status"] == "error"


async def test_a_run_needs_no_thread(world: World) -> None:
    """wait, stream, create and batch; the id that stands for its thread leads to it."""
    sdk = world.sdk
    assert said(await sdk.runs.wait(None, "planner", input=HELLO)) == [("human", "hello"), ("ai", ANSWER)]
    places: list[Any] = []
    parts = await heard(sdk.runs.stream(None, "planner", input=HELLO, on_run_created=places.append))
    assert said(parts[-2].data)[-1] == ("ai", ANSWER)
    run = await sdk.runs.get(places[0]["thread_id"], places[0]["run_id"])
    assert (run["status"], run["run_id"]) == ("success", parts[0].data["run_id"])
    made = await sdk.runs.create(None, "planner", input=HELLO)
    assert said(await sdk.runs.join(made["thread_id"], made["run_id"]))[-1] == ("ai", ANSWER)
    batch = await sdk.runs.create_batch(
        [{"assistant_id": "planner", "input": HELLO}, {"assistant_id": "planner", "input": HELLO}]
    )
    for run in batch:
        await sdk.runs.join(run["thread_id"], run["run_id"])
    assert {order.thread_id for order in world.agent.orders} == {None}
    assert await sdk.threads.search() == []


async def test_assistants_are_agents_and_what_is_made_of_them(world: World) -> None:
    """Each agent is one under an id that never changes; others hold settings that their runs have."""
    assistants = world.sdk.assistants
    (own,) = await assistants.search()
    assert (own["graph_id"], own["name"]) == ("planner", "planner")
    assert own == await assistants.get(own["assistant_id"]) == await assistants.get("planner")
    assert own["assistant_id"][14] == "5"
    calm = await assistants.create("planner", {"configurable": {"temperature": 0.5}}, name="Calm", metadata={"a": 1})
    assert await assistants.create("planner", assistant_id=calm["assistant_id"], if_exists="do_nothing") == calm
    with pytest.raises(ConflictError):
        await assistants.create("planner", assistant_id=calm["assistant_id"])
    assert await assistants.search(metadata={"a": 1}) == [calm]
    found = await assistants.search(graph_id=own["assistant_id"], sort_by="name", response_format="object")
    assert found == {"assistants": [calm, own], "next": None}
    assert (await assistants.get_schemas(calm["assistant_id"]))["graph_id"] == "planner"
    await world.sdk.runs.wait(None, calm["assistant_id"], input=HELLO)
    more: Any = {"configurable": {"max_output_tokens": 9}}
    await world.sdk.runs.wait(None, calm["assistant_id"], input=HELLO, config=more)
    await world.sdk.runs.wait(None, own["assistant_id"], input=HELLO)
    asked = [(order.temperature, order.max_output_tokens) for order in world.agent.orders]
    assert asked == [(0.5, None), (0.5, 9), (None, None)]
    changed = await assistants.update(calm["assistant_id"], metadata={"b": 2}, description="slow")
    assert (changed["metadata"], changed["description"], changed["version"]) == ({"a": 1, "b": 2}, "slow", 2)
    await assistants.delete(calm["assistant_id"])
    assert await assistants.count() == 1
    with pytest.raises(NotFoundError):
        await assistants.get(calm["assistant_id"])
    for wrong in (assistants.update(own["assistant_id"], name="Mine"), assistants.delete(own["assistant_id"])):
        with pytest.raises(ConflictError, match="is the agent planner itself"):
            await wrong


async def test_a_thread_that_is_busy(world: World) -> None:
    """reject is refused, enqueue waits, interrupt ends what runs, rollback removes it as well."""
    thread, runs = await world.thread(), world.sdk.runs
    world.agent.may_go_on.clear()
    first = await runs.create(thread, "planner", input=HELLO)
    with pytest.raises(ConflictError, match="is busy with run"):
        await runs.create(thread, "planner", input=HELLO, multitask_strategy="reject")
    second = await runs.create(thread, "planner", input=HELLO)
    assert ((await world.sdk.threads.get(thread))["status"], second["multitask_strategy"]) == ("busy", "enqueue")
    third = await runs.create(thread, "planner", input=HELLO, multitask_strategy="interrupt")
    await runs.join(thread, first["run_id"])
    statuses = [(await runs.get(thread, run["run_id"]))["status"] for run in (first, second)]
    assert statuses == ["interrupted", "interrupted"]
    fourth = await runs.create(thread, "planner", input=HELLO, multitask_strategy="rollback")
    world.agent.may_go_on.set()
    await runs.join(thread, fourth["run_id"])
    assert [run["run_id"] for run in await runs.list(thread)] == [run["run_id"] for run in (fourth, second, first)]
    with pytest.raises(NotFoundError):
        await runs.get(thread, third["run_id"])
    assert await runs.list(thread, status="success", limit=1) == [await runs.get(thread, fourth["run_id"])]
    assert await runs.list(thread, limit=1, offset=2) == [await runs.get(thread, first["run_id"])]


async def test_a_cancelled_run_has_stopped_when_the_answer_comes(world: World) -> None:
    """One or several, kept as interrupted or removed."""
    thread, runs = await world.thread(), world.sdk.runs
    world.agent.may_go_on.clear()
    run = await runs.create(thread, "planner", input=HELLO)
    await world.agent.asked.wait()
    await runs.cancel(thread, run["run_id"], wait=True)
    assert ((await runs.get(thread, run["run_id"]))["status"], world.agent.stopped) == ("interrupted", 1)
    told = await runs.join(thread, run["run_id"])
    assert told == {"__error__": {"error": "cancelled", "message": "The run was cancelled."}}
    more = [await runs.create(thread, "planner", input=HELLO) for _ in range(2)]
    await runs.cancel_many(thread_id=thread, run_ids=[r["run_id"] for r in more], action="rollback")
    assert [r["run_id"] for r in await runs.list(thread)] == [run["run_id"]]
    await runs.delete(thread, run["run_id"])
    assert await runs.list(thread) == []


async def test_what_a_stopped_run_leaves_in_its_thread(world: World) -> None:
    """What it was asked, once it had begun, for the agent knows that; nothing of one that never began."""
    thread, runs = await world.thread(), world.sdk.runs
    world.agent.fails = True
    await runs.wait(thread, "planner", input=HELLO, raise_error=False)
    world.agent.fails = False
    world.agent.asked.clear()
    world.agent.may_go_on.clear()
    running = await runs.create(thread, "planner", input=HELLO)
    await world.agent.asked.wait()
    waiting = await runs.create(thread, "planner", input=HELLO)
    await runs.cancel(thread, waiting["run_id"])
    world.agent.may_go_on.set()
    await runs.join(thread, running["run_id"])
    state = await world.sdk.threads.get_state(thread)
    assert said(state["values"]) == [("human", "hello"), ("human", "hello"), ("ai", ANSWER)]


async def test_what_is_not_offered_is_refused_by_its_name(world: World) -> None:
    """In the sentence, which is all that the SDK shows; nothing is begun."""
    thread, runs = await world.thread(), world.sdk.runs
    for more, field in (
        ({"interrupt_before": ["agent"]}, "interrupt_before"),
        ({"command": {"resume": "x"}}, "command"),
        ({"after_seconds": 5}, "after_seconds"),
        ({"checkpoint_id": str(uuid4())}, "checkpoint_id"),
        ({"context": {"a": 1}}, "context"),
        ({"stream_mode": "debug"}, "stream_mode"),
        ({"stream_subgraphs": True}, "stream_subgraphs"),
        ({"on_completion": "delete"}, "on_completion"),
        ({"config": {"recursion_limit": 3}}, "config.recursion_limit"),
        ({"config": {"configurable": {"model": "x"}}}, "config.configurable.model"),
        ({"webhook": "http://hooks.example/"}, "webhook"),
        ({"input": {"messages": [{"role": "tool", "content": "x"}]}}, "input.messages"),
        ({"input": {"messages": []}}, "input.messages"),
        ({"input": {"topic": "x"}}, "input.topic"),
    ):
        with pytest.raises(BadRequestError) as refused:
            await runs.create(thread, "planner", **({"input": HELLO} | more))
        assert any(name.startswith(field) for name in refused_fields(refused.value)), more
        assert field.partition(".")[0] in refused.value.message, more
    threads = world.sdk.threads
    for wrong in (
        threads.search(values={"a": 1}),
        threads.create(ttl=5),
        threads.create(thread_id="t"),
        threads.get(thread, include=["ttl"]),
        threads.get_history(thread, metadata={"a": 1}),
        threads.get_state(thread, subgraphs=True),
        runs.list(thread, select=["run_id"]),
    ):
        with pytest.raises(BadRequestError):
            await wrong
    assert await runs.list(thread) == []


async def test_what_is_not_there(world: World) -> None:
    """A thread that nobody made, unless a run may make it; an agent, an assistant, a run of another thread."""
    thread, other, runs = str(uuid4()), await world.thread(), world.sdk.runs
    for wrong in (
        runs.wait(thread, "planner", input=HELLO),
        runs.create(other, "nobody", input=HELLO),
        runs.create(other, str(uuid4()), input=HELLO),
        runs.create_batch([{"assistant_id": name, "input": HELLO} for name in ("planner", "nobody")]),  # type: ignore[typeddict-item]
    ):
        with pytest.raises((NotFoundError, httpx.HTTPStatusError)) as missing:
            await wrong
        assert missing.value.response.status_code == 404
    assert world.agent.orders == []
    assert said(await runs.wait(thread, "planner", input=HELLO, if_not_exists="create"))[-1] == ("ai", ANSWER)
    (run,) = await runs.list(thread)
    assert (await runs.get(thread, run["run_id"]))["assistant_id"] == run["assistant_id"]
    native = await world.sdk.http.client.post("http://gateway/api/v1/agents/planner/runs", json={"text": "x"})
    for place in ((other, run["run_id"]), (run["run_id"], run["run_id"]), (native.json()["run_id"],) * 2):
        with pytest.raises(NotFoundError):
            await runs.get(*place)


async def test_a_key_by_either_header_and_not_by_two(world: World) -> None:
    """x-api-key is as good as Authorization; two that differ are refused, whichever would do."""
    bearer = {"authorization": f"Bearer {world.key}"}
    for headers, status in (
        ({"x-api-key": world.key}, 200),
        (bearer, 200),
        (bearer | {"x-api-key": world.key}, 200),
        ({"x-api-key": "no"}, 401),
        ({}, 401),
        (bearer | {"x-api-key": "no"}, 400),
        ({"authorization": "Bearer no", "x-api-key": world.key}, 400),
        (bearer | {"x-api-key": ""}, 400),
    ):
        answer = await world.client(headers).http.client.get("/info")
        assert answer.status_code == status, headers
    twice = [("x-api-key", world.key), ("x-api-key", world.key)]
    assert (await world.client({}).http.client.get("/info", headers=twice)).status_code == 400
    assert (await world.client({}).http.client.get("/ok")).json() == {"ok": True}


async def test_a_thread_that_is_too_large_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than held in memory; it can still be deleted."""
    thread = await world.thread()
    await world.sdk.runs.wait(thread, "planner", input=HELLO)
    monkeypatch.setattr(langgraph_threads, "MAX_STATE_CHARS", 9)
    with pytest.raises(APIStatusError, match="more than 9 characters") as refused:
        await world.sdk.threads.get_state(thread)
    assert refused.value.status_code == 413
    await world.sdk.threads.delete(thread)


async def test_a_quiet_stream_shows_that_the_connection_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment comes while nothing else does, and no event is lost for it."""
    monkeypatch.setattr(langgraph_stream, "QUIET_S", 0.001)
    go_on, left = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncGenerator[bytes]:
        try:
            await go_on.wait()
            yield b"late"
            await asyncio.Event().wait()
        finally:
            left.set()

    now = asyncio.get_running_loop().time()
    stream = langgraph_stream.kept_alive(slow(), until=now + 600)
    assert await anext(stream) == b": quiet\n\n"
    go_on.set()
    while (block := await anext(stream)) == b": quiet\n\n":
        pass
    assert block == b"late"
    await stream.aclose()
    assert left.is_set()
    left.clear()
    assert [block async for block in langgraph_stream.kept_alive(slow(), until=now, cut=b"cut")] == [b"late", b"cut"]
    assert left.is_set()
