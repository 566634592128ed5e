"""A deterministic chat model: it answers by a script, so that tests and benchmarks measure everything but a model.

Scripts: `ok` answers "ok"; `echo` answers "echo: <last user text>"; `steps` obeys the last user message, a JSON object
`{"script": [step, …]}`; any other name is a list of steps given to the model at construction.

A step is an object with one of these keys. Steps without an answer act and go on to the next; each answer ends one
model call, and the next model call of the same turn goes on after it. After the last step the answer is "done".

    say: text             answer; "{tool}" stands for the last tool result
    stream: [text, …]     answer in these pieces when streamed, joined when not;  times: n    all of them n times over
    call_tool: {name, args}      answer with one tool call;  call_tools: [{…}, …] with several at once
    loop_tools: {name, args}     answer with this tool call now and for ever
    fail: text            raise a RuntimeError
    sleep_s: number       wait without work            spin_s: number    hold the CPU
    allocate_mib: number  take and touch memory, then let go of it
    usage: {…}            LangChain usage_metadata of the next answer, instead of the counted words

A token is a word: a piece of text between spaces.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from cluster.agents.answer_schema import CORRECTION

Step = dict[str, Any]
_ANSWERS = ("say", "stream", "call_tool", "call_tools", "loop_tools", "fail")


class ScriptedModel(BaseChatModel):
    """The scripted model; `script` is "ok", "echo", "steps" or a name for `steps`."""

    script: str = "ok"
    steps: list[Step] | None = None
    # Taken like a provider's; the answers are the same for each.
    seed: int | None = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model itself: a script calls tools by name, whatever is offered."""
        return self.bind(**kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self._is_plain(messages):
            return _result(self._plain_answer(messages, kwargs.get("max_tokens"), stop))
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self._is_plain(messages):
            return _result(self._plain_answer(messages, kwargs.get("max_tokens"), stop))
        message, _ = await self._perform(messages, kwargs.get("max_tokens"), stop)
        return _result(message)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if self._is_plain(messages):
            message = self._plain_answer(messages, kwargs.get("max_tokens"), stop)
            pieces = _words(cast("str", message.content))
        else:
            message, pieces = await self._perform(messages, kwargs.get("max_tokens"), stop)
        for piece in pieces:
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
            await asyncio.sleep(0)
        # Like OpenAI's stream: the last chunk carries the tool calls, the reason and the usage.
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                tool_call_chunks=[
                    {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": i, "type": "tool_call_chunk"}
                    for i, c in enumerate(message.tool_calls)
                ],
                usage_metadata=message.usage_metadata,
                response_metadata=message.response_metadata,
            )
        )

    def _is_plain(self, messages: list[BaseMessage]) -> bool:
        if self.steps is not None:
            return False
        return self.script != "steps" or '"script"' not in _last_user_text(messages)

    def _plain_answer(self, messages: list[BaseMessage], max_tokens: int | None, stop: list[str] | None) -> AIMessage:
        return _answer("ok" if self.script == "ok" else "echo: " + _last_user_text(messages), messages, max_tokens, stop)

    async def _perform(
        self, messages: list[BaseMessage], max_tokens: int | None, stop: list[str] | None
    ) -> tuple[AIMessage, list[str]]:
        steps = self.steps if self.steps is not None else _steps_of(_last_user_text(messages))
        usage: UsageMetadata | None = None
        for step in _steps_of_this_call(steps, messages):
            if "usage" in step:
                usage = cast("UsageMetadata", step["usage"])
            await _act(step)
            if not any(k in step for k in _ANSWERS):
                continue
            calls = _tool_calls(step, messages)
            pieces = [] if calls else _pieces(step, messages)
            message = _answer("".join(pieces), messages, max_tokens, stop, usage=usage, tool_calls=calls)
            return message, pieces if len("".join(pieces)) == len(message.content) else _words(cast("str", message.content))
        message = _answer("done", messages, max_tokens, stop, usage=usage)
        return message, _words(cast("str", message.content))


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _is_asked(message: BaseMessage) -> bool:
    # Asked once more for the same, a model goes on in its script.
    return isinstance(message, HumanMessage) and message.id != CORRECTION


def _last_user_text(messages: list[BaseMessage]) -> str:
    for message in reversed(messages):
        if _is_asked(message):
            return message.content if isinstance(message.content, str) else str(message.text)
    return ""


def _answer(
    text: str,
    messages: list[BaseMessage],
    max_tokens: int | None,
    stop: list[str] | None = None,
    *,
    usage: UsageMetadata | None = None,
    tool_calls: list[dict[str, Any]] | None = None,
) -> AIMessage:
    reason = "tool_calls" if tool_calls else "stop"
    for word in stop or ():
        text = text.partition(word)[0]
    if max_tokens is not None and text.count(" ") >= max_tokens:
        text, reason = " ".join(text.split(" ")[:max_tokens]), "length"
    if usage is None:
        sent = sum(m.content.count(" ") + 1 for m in messages if isinstance(m.content, str))
        said = text.count(" ") + 1
        usage = {"input_tokens": sent, "output_tokens": said, "total_tokens": sent + said}
    return AIMessage(
        content=text,
        tool_calls=cast("Any", tool_calls or []),
        usage_metadata=usage,
        response_metadata={"finish_reason": reason},
    )


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]


def _steps_of(text: str) -> list[Step]:
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("script"), list):
        raise ValueError('A script is a JSON object {"script": [step, …]}.')  # noqa: TRY004  # the text is wrong, not its type
    return cast("list[Step]", document["script"])


def _steps_of_this_call(steps: list[Step], messages: list[BaseMessage]) -> list[Step]:
    """Return the steps from where the turn stands: its answers so far are the AI messages after the last user message."""
    answered = 0
    for message in reversed(messages):
        if _is_asked(message):
            break
        answered += isinstance(message, AIMessage)
    for index, step in enumerate(steps):
        if answered == 0 or "loop_tools" in step:
            return steps[index:]
        answered -= any(k in step for k in _ANSWERS)
    return []


async def _act(step: Step) -> None:
    if "sleep_s" in step:
        await asyncio.sleep(float(step["sleep_s"]))
    if "spin_s" in step:
        end = time.monotonic() + float(step["spin_s"])
        while time.monotonic() < end:
            pass
    if "allocate_mib" in step:
        taken = bytearray(b"\1") * (int(step["allocate_mib"]) << 20)
        del taken
    if "fail" in step:
        raise RuntimeError(str(step["fail"]))


def _tool_calls(step: Step, messages: list[BaseMessage]) -> list[dict[str, Any]]:
    wanted = step.get("call_tools") or [step[k] for k in ("call_tool", "loop_tools") if k in step]
    return [
        {"name": str(c["name"]), "args": dict(c.get("args", {})), "id": f"call-{len(messages)}-{i}", "type": "tool_call"}
        for i, c in enumerate(wanted)
    ]


def _pieces(step: Step, messages: list[BaseMessage]) -> list[str]:
    if "stream" in step:
        return [str(piece) for piece in step["stream"]] * int(step.get("times", 1))
    text = str(step["say"])
    if "{tool}" in text:
        results = [str(m.text) for m in messages if isinstance(m, ToolMessage)]
        text = text.replace("{tool}", results[-1] if results else "")
    return _words(text)
