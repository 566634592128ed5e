"""Which model a string names, and how a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from cluster.agents.call import CallMeter
from cluster.agents.models import build_model
from cluster.agents.scripted_model import ScriptedModel
from cluster.agents.token_usage import charge
from cluster.errors import ConfigurationError


def test_scripted_is_the_same_class_for_all_scripts(tmp_path: Path) -> None:
    """ok, echo and steps are built in; any other name is a file of steps."""
    (tmp_path / "mine.json").write_text(json.dumps([{"say": "from the file"}]))
    mine = build_model("scripted:mine", script_dir=tmp_path)
    assert type(build_model("scripted:echo")) is type(mine) is ScriptedModel
    assert mine.invoke("x").content == "from the file"
    assert build_model("scripted:ok").invoke("x").content == "ok"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-5", "names no provider"),
        (":x", "names no provider"),
        ("scripted:none", "no script 'none'"),
        ("scripted:../../etc/passwd", "no script"),
        ("local:smollm2", "sovereign up --local-model"),
        ("nonsense:model", "cannot be set up"),
        ("anthropic:claude", "needs a package that is not installed"),
    ],
)
def test_a_wrong_model_says_what_to_do(model: str, words: str, tmp_path: Path) -> None:
    """Every model that cannot be built is a ConfigurationError with the missing thing in it."""
    with pytest.raises(ConfigurationError) as e:
        build_model(model, script_dir=tmp_path)
    assert words in str(e.value)


def test_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider without its key is refused before any call."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        build_model("openai:gpt-5-mini")


def test_local_model_is_openai_compatible() -> None:
    """The local endpoint is asked once, without retries, with usage in the stream."""
    model = build_model("local:smollm2", local_model_url="http://127.0.0.1:1/v1")
    assert isinstance(model, ChatOpenAI)
    assert (model.max_retries, model.stream_usage, str(model.openai_api_base)) == (0, True, "http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("details_in", "details_out", "expected"),
    [
        ({}, {}, (100, 0, 0, 50, 0)),
        ({"priority_cache_read": 40, "priority": 60}, {"priority_reasoning": 5}, (60, 40, 0, 45, 5)),
        ({"cache_creation": 0, "ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 3}, {}, (90, 0, 10, 50, 0)),
        ({"cache_read": 400, "cache_creation": 400}, {"reasoning": 400}, (0, 100, 0, 0, 50)),
        ({"cache_read": None, "audio": 5}, {"audio": 5}, (100, 0, 0, 50, 0)),
        ({"cache_read": -5}, {"reasoning": -5}, (100, 0, 0, 50, 0)),
    ],
)
def test_classes_sum_to_what_the_provider_counted(
    details_in: dict[str, int], details_out: dict[str, int], expected: tuple[int, ...]
) -> None:
    """Whatever details a provider gives, the five classes are disjoint and none is negative."""
    message = AIMessage(
        "x",
        usage_metadata={"input_tokens": 100, "output_tokens": 50, "total_tokens": 150},
        response_metadata={"token_usage": {"prompt_tokens": 100}, "stop_reason": "max_tokens"},
    )
    assert message.usage_metadata is not None
    message.usage_metadata["input_token_details"] = details_in  # type: ignore[typeddict-item]  # as providers send them
    message.usage_metadata["output_token_details"] = details_out  # type: ignore[typeddict-item]  # as providers send them
    meter = CallMeter()
    charge(meter, message)
    got = (
        meter.tokens_input_uncached,
        meter.tokens_cache_read,
        meter.tokens_cache_write,
        meter.tokens_output,
        meter.tokens_reasoning,
    )
    assert got == expected
    assert sum(got) == 150
    assert meter.provider_usage == [{"prompt_tokens": 100}]
    assert meter.finish_reason == "length"


def test_usage_that_was_not_reported_is_said() -> None:
    """A provider that counts nothing leaves a mark, not a silent zero."""
    meter = CallMeter()
    charge(meter, AIMessage("x"))
    assert meter.provider_usage == [{"unreported": True}]
