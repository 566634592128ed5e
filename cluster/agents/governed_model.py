"""The seam at which every model call of an agent is counted, limited, metered and streamed.

LangChain's `wrap_model_call` would be the other place. It is not used here because every middleware hook is wrapped in
a tracing decorator that, even with tracing off, costs two trips to a thread pool: half as much again as the whole graph.
A chat model that wraps a chat model costs nothing measurable, and binds the tools once instead of on every call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, message_chunk_to_message
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from cluster.agents.call import CURRENT_CALL, CURRENT_METER, CallMeter
from cluster.agents.model_failure import model_failure, secrets_of
from cluster.agents.token_usage import at_most_tokens, charge, charge_interrupted, schema_tokens
from cluster.errors import IterationLimitError
from cluster.telemetry.tracing import span


@dataclass(slots=True)
class CallOptions:
    """What one call asks of the model beyond its messages, and where its text goes as it comes."""

    # Keyword arguments of the model call, in the provider's words.
    settings: dict[str, Any] = field(default_factory=dict)
    # Takes each piece of text; None when the caller wants the whole answer.
    sink: asyncio.Queue[str | None] | None = None
    # The provider's word for the most tokens that an answer may have.
    max_tokens_key: str = "max_tokens"


CURRENT_OPTIONS: ContextVar[CallOptions | None] = ContextVar("sovereign_call_options", default=None)


class GovernedModel(BaseChatModel):
    """A chat model that answers through `inner`, within at most `max_iterations` model calls a call of the agent."""

    inner: BaseChatModel
    max_iterations: int
    model_name: str
    _bound: dict[tuple[str, ...], GovernedCall] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "governed"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("The governed model is called through bind() or bind_tools(), asynchronously.")

    def bind(self, **kwargs: Any) -> GovernedCall:  # type: ignore[override]  # narrower: what create_agent calls on is the Runnable
        """Return the governed call without tools."""
        return self.bind_tools(())

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> GovernedCall:
        """Return the governed call with `tools`, bound once: converting their schemas costs more than the rest of the graph."""
        names = tuple(t.name for t in tools if isinstance(t, BaseTool))
        call = self._bound.get(names)
        if call is None:
            inner: Runnable[LanguageModelInput, AIMessage] = self.inner.bind_tools(tools) if tools else self.inner
            fixed: dict[str, Any] = {}
            # A plain binding only adds keyword arguments; adding them here spares merging two configs on every call.
            if isinstance(inner, RunnableBinding) and not inner.config and not inner.config_factories:
                fixed = dict(inner.kwargs)
                inner = inner.bound
            call = self._bound[names] = GovernedCall(inner, fixed, self.max_iterations, self.model_name, secrets_of(self.inner))
        return call


class GovernedCall(Runnable[LanguageModelInput, AIMessage]):
    """One way of calling the inner model: counts against the limit first, meters the answer after."""

    def __init__(
        self,
        inner: Runnable[LanguageModelInput, AIMessage],
        fixed: dict[str, Any],
        max_iterations: int,
        model_name: str,
        secrets: tuple[str, ...],
    ) -> None:
        self._inner = inner
        self._fixed = fixed
        # As the provider gets them; a part of every prompt.
        self._tools: Sequence[Any] = fixed.get("tools", ())
        self._tools_tokens = schema_tokens(self._tools)
        self._max_iterations = max_iterations
        self._model_name = model_name
        provider = model_name.partition(":")[0]
        self._attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model_name,
            "gen_ai.provider.name": provider,
        }
        self._secrets = secrets

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Refuse: an agent's model is only called from its event loop."""
        raise NotImplementedError("The governed model is called asynchronously.")

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Return the model's answer to `input`, a list of messages.

        Raises IterationLimitError before the call that would be one too many, CallBudgetExceededError before one that might
        pass what is reserved, and ModelFailedError or OutOfMemoryError for what the model raised.
        """
        meter = CURRENT_METER.get()
        if meter.model_calls >= self._max_iterations:
            raise IterationLimitError(
                f"The agent used all of its {self._max_iterations} model iterations without coming to an answer.",
                hint="Ask for less in one call, or register the agent with a higher `max_iterations`.",
            )
        messages = answer_open_tool_calls(cast("list[BaseMessage]", input))
        options = self._within_budget(messages, meter, CURRENT_OPTIONS.get())
        meter.model_calls += 1
        try:
            with span(f"chat {self._model_name}", kind="client", attributes=self._attributes) as traced:
                if options is None:
                    message = await self._inner.ainvoke(messages, **self._fixed)
                elif options.sink is None:
                    message = await self._inner.ainvoke(messages, **self._fixed, **options.settings)
                else:
                    message = await self._stream(messages, meter, options.sink, options.settings)
                if used := message.usage_metadata:
                    traced.set(
                        {"gen_ai.usage.input_tokens": used["input_tokens"], "gen_ai.usage.output_tokens": used["output_tokens"]}
                    )
        except asyncio.CancelledError:
            if options is None or options.sink is None:
                charge_interrupted(meter, messages, self._tools)
            raise
        except Exception as e:
            raise model_failure(e, self._model_name, self._secrets) from e
        charge(meter, message)
        return message

    def _within_budget(self, messages: list[BaseMessage], meter: CallMeter, options: CallOptions | None) -> CallOptions | None:
        """Return the options with an answer no longer than what is reserved pays for."""
        call = CURRENT_CALL.get(None)
        if call is None or call.budget is None:
            return options
        key = options.max_tokens_key if options is not None else CallOptions().max_tokens_key
        settings = options.settings if options is not None else {}
        prompt = at_most_tokens(messages) + self._tools_tokens
        most = call.budget.output_tokens(meter.quantities(), prompt, settings.get(key))
        return CallOptions(settings | {key: most}, None if options is None else options.sink, key)

    async def _stream(
        self, messages: list[BaseMessage], meter: CallMeter, sink: asyncio.Queue[str | None], settings: dict[str, Any]
    ) -> AIMessage:
        chunks: list[AIMessage] = []
        try:
            async for chunk in self._inner.astream(messages, **self._fixed, **settings):
                chunks.append(chunk)
                text = chunk.content if isinstance(chunk.content, str) else str(chunk.text)
                if text:
                    await sink.put(text)
        except asyncio.CancelledError:
            charge_interrupted(meter, messages, self._tools, _joined(chunks) if chunks else None)
            raise
        return _joined(chunks)


def _joined(chunks: list[AIMessage]) -> AIMessage:
    parts = [c for c in chunks if isinstance(c, AIMessageChunk)]
    if len(parts) != len(chunks) or not parts:
        return chunks[-1]  # a model that does not stream answers once, in whole
    return cast("AIMessage", message_chunk_to_message(add_ai_message_chunks(*parts) if len(parts) > 1 else parts[0]))


def answer_open_tool_calls(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Return `messages` with an error result for every tool call that has none.

    A turn that was cancelled or killed between a tool call and its result leaves such calls in the conversation, and
    providers refuse the next turn because of them.
    """
    if len(messages) < 3:
        return messages
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    if not any(c["id"] not in answered for m in messages if isinstance(m, AIMessage) for c in m.tool_calls):
        return messages
    patched: list[BaseMessage] = []
    for message in messages:
        patched.append(message)
        if isinstance(message, AIMessage):
            patched += [
                ToolMessage("This tool call was interrupted.", name=c["name"], tool_call_id=c["id"] or "", status="error")
                for c in message.tool_calls
                if c["id"] not in answered
            ]
    return patched
