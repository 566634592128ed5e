"""The official OpenAI client, against a gateway in this process: every part of the protocol that it is promised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from cluster.errors import ModelFailedError
from tests.answering import Agents, answering

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
FLAT: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
CALL = {"call_tool": {"name": "weather", "args": {"city": "Köln"}}}


class Place(BaseModel):
    """What an answer may have to be."""

    city: str
    people: int


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[AsyncOpenAI, Agents]]:
    async with (
        answering(tmp_path) as (app, agents),
        AsyncOpenAI(
            base_url="http://gateway/v1",
            api_key="x",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=httpx.ASGITransport(app)),
        ) as client,
    ):
        yield client, agents


@pytest.fixture
def client(served: tuple[AsyncOpenAI, Agents]) -> AsyncOpenAI:
    return served[0]


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


def user(*steps: dict[str, Any]) -> Any:
    return {"role": "user", "content": script(*steps)}


async def ask(client: AsyncOpenAI, messages: list[Any], **more: Any) -> Any:
    return await client.chat.completions.create(model="planner", messages=messages, **more)


async def respond(client: AsyncOpenAI, given: Any, **more: Any) -> Any:
    return await client.responses.create(model="planner", input=given, **more)


async def test_a_function_is_called_and_its_result_goes_on(client: AsyncOpenAI) -> None:
    """The client sends back the very message that it got, with the result after it."""
    messages = [user(CALL, {"say": "it is {tool}"})]
    first = (await ask(client, messages, tools=[WEATHER])).choices[0]
    assert (first.finish_reason, first.message.content) == ("tool_calls", None)
    (call,) = first.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "weather", {"city": "Köln"})
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = (await ask(client, messages, tools=[WEATHER])).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", "it is sunny")


async def test_a_streamed_call_is_the_same_call(client: AsyncOpenAI) -> None:
    """The client's own helper puts the stream together to what the whole answer is."""
    messages, options = [user({"stream": ["let me ", "see"]})], {"include_usage": True}
    async with client.chat.completions.stream(model="planner", messages=messages, stream_options=options) as stream:  # type: ignore[arg-type]  # a TypedDict
        spoken = await stream.get_final_completion()
    assert (spoken.choices[0].message.content, spoken.choices[0].finish_reason) == ("let me see", "stop")
    assert spoken.usage is not None
    async with client.chat.completions.stream(model="planner", messages=[user(CALL)], tools=[WEATHER]) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert (final.choices[0].finish_reason, json.loads(call.function.arguments)) == ("tool_calls", {"city": "Köln"})


async def test_a_function_that_may_not_be_called_is_not_offered(client: AsyncOpenAI) -> None:
    """With `none` the model's call of it is refused like that of any tool that is not there."""
    answer = await ask(client, [user(CALL, {"say": "{tool}"})], tools=[WEATHER], tool_choice="none")
    assert "not granted" in answer.choices[0].message.content


async def test_an_answer_of_a_schema_is_parsed(client: AsyncOpenAI) -> None:
    """A wrong answer is asked for again, and the client's `parse` makes an object of the right one."""
    steps = user({"say": "Rome"}, {"say": '{"city": "Rome", "people": 3}'})
    parsed = await client.chat.completions.parse(model="planner", messages=[steps], response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Rome", people=3)
    whole = await ask(client, [user({"say": '{"any": 1}'})], response_format={"type": "json_object"})
    assert json.loads(whole.choices[0].message.content) == {"any": 1}


async def test_an_answer_that_stays_wrong_is_an_error(client: AsyncOpenAI) -> None:
    """It has a code, and says what was wrong; a stream ends with it."""
    messages = [user({"say": "no"}, {"say": '{"city": 1}'})]
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.parse(model="planner", messages=messages, response_format=Place)
    assert (caught.value.status_code, caught.value.code) == (502, "answer_mismatch")
    # The client would ask again by itself, and have the model asked twice more each time.
    assert caught.value.response.headers["x-should-retry"] == "false"
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": Place.model_json_schema()}}
    with pytest.raises(openai.APIError, match="did not answer in the form"):
        async for _ in await ask(client, messages, response_format=form, stream=True):
            pass


async def test_settings_reach_the_model(client: AsyncOpenAI) -> None:
    """Those that it takes do something, neutral ones are as none, others are refused by name."""
    neutral = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
    answer = await ask(client, [user({"say": "one two three"})], stop=" two", seed=7, **neutral)
    assert answer.choices[0].message.content == "one"
    with pytest.raises(openai.BadRequestError, match="top_p") as caught:
        await ask(client, [user({"say": "x"})], top_p=0.5)
    assert caught.value.param == "top_p"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wat"}}}},
            "response_format.json_schema.schema",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content"),
    ],
)
async def test_what_is_not_taken_is_named(client: AsyncOpenAI, more: dict[str, Any], param: str) -> None:
    """In OpenAI's shape: `param` is the field's path."""
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(client, **({"messages": [user({"say": "x"})]} | more))
    assert caught.value.code == "invalid_request"
    assert (caught.value.param or "").startswith(param)


async def test_agents_are_models(client: AsyncOpenAI) -> None:
    """Listed, and one by its id; there is no other."""
    assert [m.id async for m in client.models.list()] == ["planner"]
    assert (await client.models.retrieve("planner")).owned_by == "acme"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_a_response_is_an_answer_with_its_usage(client: AsyncOpenAI) -> None:
    """From text or items, with instructions; what was asked is repeated."""
    answer = await respond(client, script({"say": "good day"}), instructions="Be brief.", metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.instructions, answer.metadata) == (
        "good day",
        "completed",
        "Be brief.",
        {"a": "b"},
    )
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    again = await respond(client, [{"role": "user", "content": [{"type": "input_text", "text": script({"say": "x"})}]}])
    assert again.output_text == "x"


async def test_a_response_is_cut_at_its_bound(client: AsyncOpenAI) -> None:
    """It is incomplete, and says why."""
    answer = await respond(client, script({"say": "one two three"}), max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason, answer.output_text) == ("incomplete", "max_output_tokens", "one two")


async def test_a_streamed_response_is_the_same_response(client: AsyncOpenAI) -> None:
    """The client's helper, which checks the order of events, comes to what the last event has."""
    async with client.responses.stream(model="planner", input=script({"stream": ["a ", "b ", "c"]})) as stream:
        kinds, numbers = [], []
        async for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
        final = await stream.get_final_response()
    assert (final.output_text, final.status) == ("a b c", "completed")
    assert final.usage is not None
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_response_calls_a_function_and_goes_on_from_it(client: AsyncOpenAI, streamed: bool) -> None:
    """By previous_response_id only the result is sent: the agent remembers the rest."""
    given = script(CALL, {"say": "it is {tool}"})
    if streamed:
        async with client.responses.stream(model="planner", input=given, tools=[FLAT]) as stream:
            first: Any = await stream.get_final_response()
    else:
        first = await respond(client, given, tools=[FLAT])
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Köln"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    second = await respond(client, [result], previous_response_id=first.id, tools=[FLAT])
    assert second.output_text == "it is rain"
    assert second.previous_response_id == first.id
    with pytest.raises(openai.ConflictError, match="gone on"):
        await respond(client, "again", previous_response_id=first.id)


async def test_without_a_store_the_whole_exchange_is_sent(client: AsyncOpenAI) -> None:
    """The client sends back the items that it got; the response can't be continued."""
    given: list[Any] = [user(CALL, {"say": "it is {tool}"})]
    first = await respond(client, given, tools=[FLAT], store=False)
    given += [*first.output, {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "fog"}]
    second = await respond(client, given, tools=[FLAT], store=False)
    assert second.output_text == "it is fog"
    with pytest.raises(openai.NotFoundError):
        await respond(client, "more", previous_response_id=second.id)


async def test_a_conversation_may_be_named(client: AsyncOpenAI) -> None:
    """It is the one that chat completions know by the same id."""
    await ask(client, [user({"say": "1"})], metadata={"conversation_id": "c1"})
    alone = await respond(client, script({"say": "1"}))
    further = await respond(client, script({"say": "1"}), conversation="c1")
    assert further.usage.input_tokens > alone.usage.input_tokens
    assert further.conversation.id == "c1"


async def test_a_response_of_a_schema_is_parsed(client: AsyncOpenAI) -> None:
    """As with completions."""
    steps = script({"say": "Rome"}, {"say": '{"city": "Rome", "people": 3}'})
    parsed = await client.responses.parse(model="planner", input=steps, text_format=Place)
    assert parsed.output_parsed == Place(city="Rome", people=3)


async def test_a_stream_that_fails_ends_with_the_failure(served: tuple[AsyncOpenAI, Agents]) -> None:
    """After its text, as a response that failed, with a code."""
    client, agents = served

    async def breaks(*_: object) -> AsyncIterator[str]:
        yield "half"
        raise ModelFailedError("The model broke off.")

    agents.brain.stream = breaks  # type: ignore[method-assign, assignment]  # no script breaks off in the middle of a text
    events = [event async for event in await respond(client, "x", stream=True)]
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == ["half"]
    assert (events[-1].type, events[-1].response.error.code) == ("response.failed", "model_failed")
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in await ask(client, [user({"say": "x"})], stream=True):
            pass


async def test_a_response_runs_in_the_background(client: AsyncOpenAI) -> None:
    """It is there at once, is read again until it is done, can be continued and forgotten."""
    begun = await respond(client, script(CALL, {"say": "it is {tool}"}), background=True, tools=[FLAT], metadata={"a": "b"})
    assert begun.status in ("queued", "in_progress")
    seen = begun
    while seen.status in ("queued", "in_progress"):
        seen = await client.responses.retrieve(begun.id)
    assert (seen.id, seen.status, seen.metadata, seen.background) == (begun.id, "completed", {"a": "b"}, True)
    (call,) = seen.output
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "hail"}  # type: ignore[union-attr]
    further = await respond(client, [result], previous_response_id=seen.id, tools=[FLAT])
    assert further.output_text == "it is hail"
    await client.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(begun.id)


async def test_a_response_in_the_background_is_cancelled(client: AsyncOpenAI) -> None:
    """The answer comes when its work has stopped."""
    begun = await respond(client, script({"sleep_s": 1000}, {"say": "never"}), background=True)
    assert (await client.responses.cancel(begun.id)).status == "cancelled"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"input": [{"type": "reasoning", "id": "x", "summary": []}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "wat"}}}}, "text.format.schema"),
        ({"background": True, "stream": True}, "body"),
        ({"store": False, "conversation": "c"}, "body"),
    ],
)
async def test_what_a_response_does_not_take_is_named(client: AsyncOpenAI, more: dict[str, Any], param: str) -> None:
    """By its path, and nothing is asked of the agent."""
    with pytest.raises(openai.BadRequestError) as caught:
        await respond(client, **({"given": more.get("input", "x")} | {k: v for k, v in more.items() if k != "input"}))
    assert (caught.value.param or "").startswith(param)


async def test_a_key_without_the_right_asks_nothing(served: tuple[AsyncOpenAI, Agents]) -> None:
    """Responses need what completions need."""
    client, agents = served
    agents.scopes = frozenset()
    for call in (respond(client, "x"), client.responses.retrieve("resp_a.b"), client.models.retrieve("planner")):
        with pytest.raises(openai.PermissionDeniedError):
            await call
