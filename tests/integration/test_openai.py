"""The official OpenAI client, sync and async, over the whole road: gateway, channel, agent, journal, lake."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.servers.cluster import RunningCluster, eventually

CALL = {"call_tool": {"name": "weather", "args": {"city": "Köln"}}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FLAT: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}


class Place(BaseModel):
    """What an answer may have to be."""

    city: str


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


@pytest.fixture(scope="module")
def agent(cluster: RunningCluster) -> str:
    assert cluster.register("openai").status_code == 201
    return "openai"


def test_functions_forms_and_responses_with_the_plain_client(cluster: RunningCluster, agent: str) -> None:
    """A function's round trip, an answer of a schema, a response and its next turn: each billed as what it was."""
    with cluster.openai() as client:
        asked: list[Any] = [{"role": "user", "content": script(CALL, {"say": "it is {tool}"})}]
        first = client.chat.completions.create(model=agent, messages=asked, tools=[TOOL]).choices[0]
        assert first.finish_reason == "tool_calls"
        (call,) = first.message.tool_calls or []
        asked += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        second = client.chat.completions.create(model=agent, messages=asked, tools=[TOOL]).choices[0]
        assert second.message.content == "it is sunny"

        steps: Any = {"role": "user", "content": script({"say": "Rome"}, {"say": '{"city": "Rome"}'})}
        place = client.chat.completions.parse(model=agent, messages=[steps], response_format=Place)
        assert place.choices[0].message.parsed == Place(city="Rome")

        response = client.responses.create(model=agent, input=script(CALL, {"say": "it is {tool}"}), tools=[FLAT])
        item: Any = response.output[0]
        result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
        further = client.responses.create(model=agent, input=[result], previous_response_id=response.id, tools=[FLAT])
        assert further.output_text == "it is rain"
        with pytest.raises(openai.ConflictError):
            client.responses.create(model=agent, input="again", previous_response_id=response.id)
        assert client.models.retrieve(agent).id == agent
    rows = {row["invocation_id"]: row for row in eventually(lambda: cluster.usage(agent), lambda rows: len(rows) >= 6)}
    repaired, last = rows[place.id.removeprefix("chatcmpl-")], rows[further.id.rpartition(".")[2]]
    assert place.usage is not None
    assert further.usage is not None
    assert repaired["tokens_output"] == place.usage.completion_tokens == 1 + 2
    assert (last["outcome"], last["tool_calls"], last["tokens_output"]) == ("ok", 0, further.usage.output_tokens)


def test_streams_and_background_with_the_async_client(cluster: RunningCluster, agent: str) -> None:
    """Streamed text and calls come whole by the client's own helpers; a cancelled response has stopped when that is answered."""

    async def all_of_it() -> None:
        async with cluster.async_openai() as client:
            steps: Any = [{"role": "user", "content": script({"stream": ["one ", "two ", "drei ü"]})}]
            async with client.chat.completions.stream(model=agent, messages=steps) as chat:
                assert (await chat.get_final_completion()).choices[0].message.content == "one two drei ü"
            calls: Any = [{"role": "user", "content": script(CALL)}]
            async with client.chat.completions.stream(model=agent, messages=calls, tools=[TOOL]) as chat:
                final = await chat.get_final_completion()
            assert [c.function.arguments for c in final.choices[0].message.tool_calls or []] == ['{"city": "Köln"}']
            async with client.responses.stream(model=agent, input=script({"stream": ["a", "b"]})) as stream:
                assert (await stream.get_final_response()).output_text == "ab"

            begun = await client.responses.create(model=agent, input=script({"say": "later"}), background=True)
            while begun.status in ("queued", "in_progress"):
                begun = await client.responses.retrieve(begun.id)
            assert begun.output_text == "later"
            endless = await client.responses.create(model=agent, input=script({"sleep_s": 600}, {"say": "x"}), background=True)
            assert (await client.responses.cancel(endless.id)).status == "cancelled"

    asyncio.run(all_of_it())
