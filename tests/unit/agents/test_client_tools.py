"""Functions that a caller runs itself, and answers of the form that a caller asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from cluster.agents.answer_schema import AnswerMismatchError, AnswerSchema
from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.client_tools import ClientTools
from cluster.agents.exchanges import whole_exchanges
from cluster.agents.models import build_model
from cluster.agents.sqlite_checkpointer import SqliteCheckpointStore
from cluster.errors import ConflictError, InvalidRequestError, NotFoundError

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = ClientTools([WEATHER])
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ran: list[str] = []


@tool
async def search(text: str) -> str:
    """Search."""
    ran.append(text)
    return f"found {text}"


@pytest.fixture(autouse=True)
def _empty() -> None:
    ran.clear()


def new_brain(checkpointer: SqliteCheckpointStore | None = None) -> Brain:
    model = build_model("scripted:steps")
    return Brain(model, [search], instructions="", max_iterations=5, model_name="scripted:steps", checkpointer=checkpointer)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Brain]:
    brain = new_brain(SqliteCheckpointStore(tmp_path / "c.sqlite"))
    yield brain
    await brain.close()


def call_tool(name: str, **args: str) -> dict[str, Any]:
    return {"call_tool": {"name": name, "args": args}}


def ask(*steps: dict[str, Any], **options: Any) -> Call:
    options = {"invocation_id": "i", "client_tools": TOOLS} | options
    return Call(messages=[{"role": "user", "content": json.dumps({"script": steps})}], **options)


async def both_ways(call: Call) -> tuple[str, CallMeter]:
    """Return the answer and meter of `run`, which are those of `stream` too."""
    one, two = CallMeter(), CallMeter()
    text = await new_brain().run(call, one)
    assert "".join([piece async for piece in new_brain().stream(call, two)]) == text
    assert one == two
    return text, one


async def test_a_call_of_the_clients_function_ends_the_turn() -> None:
    """It is handed to the caller, and nothing is run or asked after it (control: the break in Brain._turn)."""
    text, meter = await both_ways(ask(call_tool("weather", city="Köln"), {"say": "never"}))
    (call,) = meter.client_calls
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Köln"})
    assert call["id"]
    assert (text, meter.finish_reason, meter.model_calls, meter.tool_calls) == ("", "tool_calls", 1, 0)


async def test_the_agents_own_tools_run_beside_it() -> None:
    """A turn goes through the agent's tools as ever until the model calls the client's."""
    _, meter = await both_ways(ask(call_tool("search", text="a"), call_tool("weather", city="Rome")))
    assert ran == ["a", "a"]
    assert (meter.model_calls, meter.tool_calls, len(meter.client_calls)) == (2, 1, 1)


async def test_called_with_the_agents_own_only_the_clients_function_counts() -> None:
    """The agent's own tool of the same message doesn't run: nobody could give its result back to the model."""
    both = {"call_tools": [{"name": "search", "args": {"text": "x"}}, {"name": "weather", "args": {}}]}
    _, meter = await both_ways(ask(both))
    assert ran == []
    assert [c["name"] for c in meter.client_calls] == ["weather"]


@pytest.mark.parametrize(("parallel", "count"), [(True, 2), (False, 1)])
async def test_several_calls_come_at_once_only_where_they_may(parallel: bool, count: int) -> None:
    """`parallel_tool_calls` is kept to also when the model does not."""
    two = {"call_tools": [{"name": "weather", "args": {"city": c}} for c in ("Rome", "Oslo")]}
    meter = CallMeter()
    await new_brain().run(ask(two, client_tools=ClientTools([WEATHER], parallel=parallel)), meter)
    assert len(meter.client_calls) == count


async def test_a_function_may_not_stand_in_for_a_tool_of_the_agent() -> None:
    """The same name is refused before the model is asked, and nothing runs (control: ClientTools.offered)."""
    meter = CallMeter()
    with pytest.raises(InvalidRequestError, match="search is a tool of this agent"):
        await new_brain().run(ask(call_tool("search", text="x"), client_tools=ClientTools([{"name": "search"}])), meter)
    assert (ran, meter.tool_calls, meter.client_calls) == ([], 0, [])


async def test_without_functions_the_name_is_not_granted() -> None:
    """What the client did not offer is a tool call like any other, and is refused."""
    meter = CallMeter()
    assert "not granted" in await new_brain().run(ask(call_tool("weather"), {"say": "{tool}"}, client_tools=None), meter)
    assert meter.client_calls == []


async def test_the_result_goes_on_where_the_turn_ended() -> None:
    """With the whole exchange sent again, as OpenAI's clients do, the model sees the result."""
    messages = [
        *ask(call_tool("weather"), {"say": "it is {tool}"}).messages,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert (await both_ways(Call("i", messages, client_tools=TOOLS)))[0] == "it is sunny"


async def test_a_conversation_takes_the_result_alone(kept: Brain) -> None:
    """The call is in the conversation, so only its result has to be sent; the agent's tools have not run for it."""
    meter = CallMeter()
    await kept.run(ask(call_tool("weather"), {"say": "it is {tool}"}, thread_id="t"), meter)
    result = {"role": "tool", "tool_call_id": meter.client_calls[0]["id"], "content": "rain"}
    assert await kept.run(Call("j", [result], thread_id="t", client_tools=TOOLS), CallMeter()) == "it is rain"


async def test_a_conversation_goes_on_without_the_result(kept: Brain) -> None:
    """A client that never runs its function has not spoiled the conversation."""
    await kept.run(ask(call_tool("weather"), thread_id="t"), CallMeter())
    assert await kept.run(ask({"say": "well"}, thread_id="t"), CallMeter()) == "well"


async def test_a_turn_follows_the_answer_that_it_names(kept: Brain) -> None:
    """From any other the conversation has gone on; one that it never had is not found (control: _check_last)."""
    await kept.run(ask({"say": "1"}, thread_id="t", invocation_id="one"), CallMeter())
    await kept.run(ask({"say": "2"}, thread_id="t", invocation_id="two", after="one"), CallMeter())
    with pytest.raises(ConflictError, match="gone on"):
        await kept.run(ask({"say": "3"}, thread_id="t", invocation_id="three", after="one"), CallMeter())
    with pytest.raises(NotFoundError):
        await kept.run(ask({"say": "3"}, thread_id="t", invocation_id="three", after="never"), CallMeter())
    with pytest.raises(Exception, match="the model failed"):
        await kept.run(ask({"fail": "the model failed"}, thread_id="t", invocation_id="lost", after="two"), CallMeter())
    # What failed left no answer: it is asked again from where it began.
    assert await kept.run(ask({"say": "3"}, thread_id="t", invocation_id="three", after="two"), CallMeter()) == "3"


async def test_instructions_are_for_one_call(kept: Brain) -> None:
    """The model is sent them, and the conversation does not keep them."""
    first, second = CallMeter(), CallMeter()
    await kept.run(ask({"say": "1"}, thread_id="t", instructions="Answer in many words."), first)
    await kept.run(ask({"say": "1"}, thread_id="u"), second)
    assert first.tokens_input_uncached == second.tokens_input_uncached + 4
    again = CallMeter()
    await kept.run(ask({"say": "1"}, thread_id="t"), again)
    assert again.tokens_input_uncached == 2 * second.tokens_input_uncached + 1


async def test_an_answer_of_the_form_is_taken_as_it_is() -> None:
    """One model call, whole and streamed."""
    text, meter = await both_ways(ask({"say": '{"n": 1}'}, response_schema=SCHEMA))
    assert (json.loads(text), meter.model_calls) == ({"n": 1}, 1)


@pytest.mark.parametrize("wrong", ["no json", '{"n": "one"}', "[1]", '{"n": NaN}'])
async def test_a_wrong_answer_is_asked_for_once_more(wrong: str) -> None:
    """Nobody sees the wrong one, and both are metered (control: the check in GovernedCall._answer)."""
    text, meter = await both_ways(ask({"say": wrong}, {"say": '{"n": 2}'}, response_schema=SCHEMA))
    assert (json.loads(text), meter.model_calls) == ({"n": 2}, 2)
    assert meter.tokens_output == wrong.count(" ") + 1 + 2


async def test_a_second_wrong_answer_is_an_error() -> None:
    """It says what was wrong, and no text has left."""
    call, pieces = ask({"say": "no"}, {"say": '{"n": "x"}'}, {"say": '{"n": 3}'}, response_schema=SCHEMA), []
    with pytest.raises(AnswerMismatchError, match="n: "):
        await new_brain().run(call, CallMeter())
    with pytest.raises(AnswerMismatchError):  # noqa: PT012  # a stream raises where it is read
        async for piece in new_brain().stream(call, CallMeter()):
            pieces.append(piece)
    assert pieces == []


async def test_an_answer_that_was_cut_off_is_told_by_its_reason() -> None:
    """A bound of tokens is the caller's own; asking again would end there too."""
    _, meter = await both_ways(ask({"say": '{"n": 1 }'}, response_schema=SCHEMA, max_output_tokens=1))
    assert (meter.finish_reason, meter.model_calls) == ("length", 1)


@pytest.mark.parametrize(
    "schema", [{"type": "wat"}, {"$ref": "http://127.0.0.1/x"}, {"$ref": "#/$defs/none"}, {"pattern": "(?=a)b"}, {"pattern": "["}]
)
def test_a_schema_that_is_none_or_looks_elsewhere_is_refused(schema: dict[str, Any]) -> None:
    """Nothing is fetched for it, and a pattern that could take for ever is none."""
    with pytest.raises(InvalidRequestError) as caught:
        AnswerSchema(schema)
    assert caught.value.errors[0].field == "response_schema"
    assert ("may name only what is in itself" in caught.value.errors[0].message) == ("http" in str(schema))


def test_patterns_take_linear_time() -> None:
    """The usual trap for a backtracking matcher."""
    assert AnswerSchema({"pattern": "^(a+)+$"}).wrong(json.dumps("a" * 20_000 + "b"))


async def test_settings_go_to_the_model_that_takes_them() -> None:
    """Those that it does not take are refused by name rather than left out."""
    text, _ = await both_ways(ask({"say": "one two three"}, model_settings={"stop": [" two"], "seed": 7}))
    assert text == "one"
    with pytest.raises(InvalidRequestError, match="top_p"):
        await new_brain().run(ask({"say": "x"}, model_settings={"top_p": 0.5}), CallMeter())


def test_results_stand_after_their_calls() -> None:
    """Late, missing, doubled and stray results are put right; what is right stays the same list."""

    def called(*ids: str) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": i} for i in ids])

    right = [HumanMessage("q"), called("1", "2"), ToolMessage("b", tool_call_id="2"), ToolMessage("a", tool_call_id="1")]
    assert whole_exchanges(right) is right
    wrong = [ToolMessage("stray", tool_call_id="9"), called("1", "2"), HumanMessage("q"), ToolMessage("late", tool_call_id="1")]
    assert [(m.type, m.text) for m in whole_exchanges(wrong)] == [
        ("ai", ""),
        ("tool", "late"),
        ("tool", "This tool call was interrupted."),
        ("human", "q"),
    ]
