"""The brain over the scripted model: answers, limits, meters, refusals, failures, cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.tools import tool

from cluster.agents.brain import Brain
from cluster.agents.call import CURRENT_METER, Call, CallMeter
from cluster.agents.models import build_model
from cluster.errors import (
    AgentFailedError,
    ConfigurationError,
    IterationLimitError,
    ModelFailedError,
    OutOfMemoryError,
    SovereignError,
)

ran: list[str] = []
refused: list[tuple[str, str]] = []


@tool
async def data_analysis(sql: str) -> str:
    """Analyse."""
    ran.append(sql)
    if sql == "raise":
        raise ValueError("no such table; api_key=abcdef123456")
    if sql == "memory":
        raise MemoryError
    if sql == "wait":
        await asyncio.Event().wait()
    return f"result of {sql}"


@pytest.fixture(autouse=True)
def _empty() -> None:
    ran.clear()
    refused.clear()


def brain(model: str = "scripted:steps", *, tools: bool = True, max_iterations: int = 10) -> Brain:
    return Brain(
        build_model(model),
        [data_analysis] if tools else [],
        instructions="You are terse.",
        max_iterations=max_iterations,
        model_name=model,
        on_refusal=lambda name, why: refused.append((name, why)),
    )


def ask(text: str | list[dict[str, Any]], **options: Any) -> Call:
    content = text if isinstance(text, str) else json.dumps({"script": text})
    return Call("i", [{"role": "user", "content": content}], **options)


def tool_call(sql: str, name: str = "data_analysis") -> dict[str, Any]:
    return {"call_tool": {"name": name, "args": {"sql": sql}}}


async def until(happened: Callable[[], object]) -> None:
    while not happened():  # noqa: ASYNC110  # what is waited for is a count, not an event
        await asyncio.sleep(0)


async def both_ways(script: list[dict[str, Any]], **options: Any) -> tuple[str, CallMeter, str, CallMeter]:
    """Return the answer and meter of `run` and the joined text and meter of `stream`."""
    one, two = CallMeter(), CallMeter()
    answer = await brain().run(ask(script, **options), one)
    pieces = [piece async for piece in brain().stream(ask(script, **options), two)]
    return answer, one, "".join(pieces), two


async def test_answers_and_meters() -> None:
    """An echo is answered, and every word sent and said is counted in its class."""
    meter = CallMeter()
    assert await brain("scripted:echo").run(ask("hello big world"), meter) == "echo: hello big world"
    assert (meter.model, meter.model_calls, meter.tool_calls) == ("scripted:echo", 1, 0)
    assert (meter.tokens_input_uncached, meter.tokens_output) == (3 + 3, 4)
    assert meter.finish_reason == "stop"
    assert len(meter.provider_usage) == 1


async def test_concurrent_calls_have_their_own_meters() -> None:
    """Calls that run at once are each metered alone, also through their tools."""

    async def one(words: int) -> CallMeter:
        meter = CallMeter()
        await agent.run(ask([{"sleep_s": 0}, tool_call("a"), {"say": " ".join("w" * words)}]), meter)
        return meter

    agent = brain()
    meters = await asyncio.gather(*(one(n) for n in range(1, 20)))
    assert [m.tokens_output - meters[0].tokens_output for m in meters] == list(range(19))
    assert {(m.model_calls, m.tool_calls) for m in meters} == {(2, 1)}


@pytest.mark.parametrize(
    "script",
    [
        [{"say": "one two three"}],
        [{"stream": ["a", " b", " c d"]}],
        [tool_call("x"), {"say": "then {tool}"}],
        [{"call_tools": [{"name": "data_analysis", "args": {"sql": "1"}}, {"name": "data_analysis", "args": {"sql": "2"}}]}],
        [
            {
                "usage": {
                    "input_tokens": 100,
                    "output_tokens": 50,
                    "total_tokens": 150,
                    "input_token_details": {"cache_read": 60, "cache_creation": 10},
                    "output_token_details": {"reasoning": 20},
                },
                "say": "ok",
            }
        ],
    ],
)
async def test_stream_meters_like_run(script: list[dict[str, Any]]) -> None:
    """Streaming gives the same text and the same counts as asking for the whole answer."""
    answer, one, text, two = await both_ways(script)
    assert text == answer
    assert one == two
    assert two.tokens_output > 0


async def test_token_classes_are_disjoint() -> None:
    """Cached and reasoning tokens are taken out of the totals that contain them."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 50,
        "total_tokens": 150,
        "input_token_details": {"cache_read": 60, "cache_creation": 10},
        "output_token_details": {"reasoning": 20},
    }
    meter = CallMeter()
    await brain().run(ask([{"usage": usage, "say": "ok"}]), meter)
    assert (meter.tokens_input_uncached, meter.tokens_cache_read, meter.tokens_cache_write) == (30, 60, 10)
    assert (meter.tokens_output, meter.tokens_reasoning) == (30, 20)
    assert meter.provider_usage == [usage]


async def test_iteration_limit() -> None:
    """An agent that calls tools for ever ends at its limit, having called the model exactly that often."""
    meter = CallMeter()
    with pytest.raises(IterationLimitError, match="all of its 4 model iterations"):
        await brain(max_iterations=4).run(ask([{"loop_tools": {"name": "data_analysis", "args": {"sql": "x"}}}]), meter)
    assert (meter.model_calls, meter.tool_calls) == (4, 4)


@pytest.mark.parametrize("name", ["web_search", "Data_Analysis", "data_analysis ", "data-analysis", "shell", ""])
async def test_injected_tool_call_is_denied_before_it_runs(name: str) -> None:
    """A tool that was not granted, an alias or another case never runs.

    Control: the grant check in GovernanceMiddleware.awrap_tool_call.
    """
    meter = CallMeter()
    answer = await brain().run(ask([tool_call("x", name), {"say": "{tool}"}]), meter)
    assert "is not granted to this agent" in answer
    assert refused == [(name, "the tool is not granted to this agent")]
    assert (ran, meter.tool_calls) == ([], 0)


async def test_agent_without_tools_refuses_every_tool() -> None:
    """With nothing granted an injected call is refused and recorded, not ignored."""
    assert "not granted" in await brain(tools=False).run(ask([tool_call("x"), {"say": "{tool}"}]), CallMeter())
    assert len(refused) == 1


async def test_failing_tool_is_a_result() -> None:
    """A tool that raises gives the model an error to read, without the secret in it; the agent goes on."""
    answer = await brain().run(ask([tool_call("raise"), {"say": "saw {tool}"}]), CallMeter())
    assert answer == "saw The tool data_analysis failed: ValueError: no such table; [redacted]"


async def test_wrong_tool_arguments_are_a_result() -> None:
    """Arguments outside the tool's schema do not reach it."""
    script = [{"call_tool": {"name": "data_analysis", "args": {"query": 1}}}, {"say": "saw {tool}"}]
    assert "sql" in await brain().run(ask(script), CallMeter())
    assert ran == []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([{"fail": "quota of the provider"}], ModelFailedError),
        ([{"allocate_mib": 1 << 34, "say": "never"}], OutOfMemoryError),
        ([tool_call("memory")], OutOfMemoryError),
        ([{"usage": "nonsense", "say": "the model's own answer is malformed"}], ModelFailedError),
    ],
)
async def test_failures_have_their_kind(script: list[dict[str, Any]], kind: type[SovereignError], streamed: bool) -> None:
    """Each way of failing raises the platform's own error, streamed or not."""

    async def read() -> None:
        _ = [piece async for piece in brain().stream(ask(script), CallMeter())]

    with pytest.raises(kind):
        await (read() if streamed else brain().run(ask(script), CallMeter()))


async def test_failure_of_the_agent_itself() -> None:
    """What is neither the model nor a limit is the agent's own failure."""
    with pytest.raises(AgentFailedError, match="The agent failed"):
        await brain().run(Call("i", [{"role": "nobody", "content": "x"}]), CallMeter())


async def test_provider_message_is_kept_without_secrets() -> None:
    """The provider's words reach the caller; keys in them do not, and they are bounded."""
    text = "401: bad key sk-proj-abcdefgh12345678 at https://u:pw123@h/ Authorization: Bearer abcdef.ghijkl " + "x" * 5000
    with pytest.raises(ModelFailedError) as e:
        await brain().run(ask([{"fail": text}]), CallMeter())
    assert "401: bad key [redacted]" in e.value.detail
    assert not any(s in e.value.detail for s in ("sk-proj", "pw123", "abcdef.ghijkl"))
    assert len(e.value.detail) < 800


async def test_max_output_tokens_reach_the_model() -> None:
    """A bound on the answer is passed on, and the reason for the cut comes back, streamed or not."""
    answer, one, text, two = await both_ways([{"say": "a b c d"}], max_output_tokens=2)
    assert answer == text == "a b"
    assert one.finish_reason == two.finish_reason == "length"


async def test_cancel_stops_tool_and_meters_what_ran() -> None:
    """Cancelling a call cancels the tool it waits for, and keeps what was used until then."""
    meter = CallMeter()
    task = asyncio.create_task(brain().run(ask([tool_call("wait"), {"say": "never"}]), meter))
    await until(lambda: ran)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (meter.model_calls, meter.tool_calls) == (1, 1)
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_cancel_stops_model() -> None:
    """Cancelling while the model thinks ends the model call; its prompt is charged, and noted as an estimate."""
    meter = CallMeter()
    task = asyncio.create_task(brain().run(ask([{"sleep_s": 3600}, {"say": "w" * 4_000}]), meter))
    await until(lambda: meter.model_calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # About 4 letters a token, and a few for the frame of each message and for the instructions.
    assert 1_000 <= meter.tokens_input_uncached <= 1_050
    assert meter.tokens_output == 0
    assert meter.provider_usage == [
        {"interrupted": True, "estimated_input_tokens": meter.tokens_input_uncached, "estimated_output_tokens": 0}
    ]


async def test_closing_a_stream_stops_the_work() -> None:
    """A reader that goes away mid-stream stops the model; what was asked and said until then is counted once."""
    meter = CallMeter()
    stream = brain().stream(ask([{"stream": [f"w{n} " for n in range(10_000)]}]), meter)
    assert await anext(stream) == "w0 "
    await stream.aclose()
    asked = len(json.dumps({"script": [{"stream": [f"w{n} " for n in range(10_000)]}]})) // 4
    assert asked <= meter.tokens_input_uncached <= asked + 50
    assert 1 <= meter.tokens_output < 1000
    assert meter.provider_usage == [
        {
            "interrupted": True,
            "estimated_input_tokens": meter.tokens_input_uncached,
            "estimated_output_tokens": meter.tokens_output,
        }
    ]
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_a_slow_reader_slows_the_model() -> None:
    """Text that nobody reads is not piled up: the model waits once the buffer is full."""
    meter = CallMeter()
    stream = brain().stream(ask([{"stream": ["w "] * 10_000}]), meter)
    await anext(stream)
    for _ in range(500):
        await asyncio.sleep(0)
    await stream.aclose()
    assert meter.tokens_output < 100


async def test_stream_leaves_its_caller_no_meter() -> None:
    """The caller of a stream keeps its own context."""
    async for _ in brain().stream(ask([{"say": "a b"}]), CallMeter()):
        assert CURRENT_METER.get(None) is None


async def test_conversation_needs_a_checkpointer() -> None:
    """A call that names a conversation is refused where none are kept, instead of forgetting it."""
    with pytest.raises(ConfigurationError, match="keeps no conversations"):
        await brain().run(ask("hi", thread_id="t"), CallMeter())
