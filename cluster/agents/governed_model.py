"""The seam at which every model call of an agent is counted, limited, metered and streamed.

LangChain's `wrap_model_call` would be the other place. It is not used here because every middleware hook is wrapped in
a tracing decorator that, even with tracing off, costs two trips to a thread pool: half as much again as the whole graph.
A chat model that wraps a chat model costs nothing measurable, and binds the tools once instead of on every call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from cluster.agents.answer_schema import CORRECTION, AnswerSchema, correction, mismatch
from cluster.agents.call import CURRENT_CALL, CURRENT_METER, CallMeter
from cluster.agents.client_tools import ClientTools
from cluster.agents.exchanges import whole_exchanges
from cluster.agents.model_failure import model_failure, secrets_of
from cluster.agents.token_usage import at_most_tokens, charge, charge_interrupted, schema_tokens
from cluster.errors import IterationLimitError
from cluster.telemetry.tracing import span

# Where a kept answer says which invocation it answered.
INVOCATION: Final = "sovereign_invocation_id"


@dataclass(slots=True)
class CallOptions:
    """What one call asks of the model beyond its messages, and where its text goes as it comes."""

    # Keyword arguments of the model call, in the provider's words.
    settings: dict[str, Any] = field(default_factory=dict)
    # Takes each piece of text; None when the caller wants the whole answer.
    sink: asyncio.Queue[str | None] | None = None
    client_tools: ClientTools | None = None
    # What the final answer has to match; it reaches the sink when it does.
    schema: AnswerSchema | None = None
    # Said to the model beside the agent's own instructions; not kept.
    guidance: str = ""
    # Whose answer it is, which its conversation keeps; empty outside one.
    invocation_id: str = ""
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
            secrets, bind = secrets_of(self.inner), partial(self._bind_with, tools)
            call = GovernedCall(inner, fixed, self.max_iterations, self.model_name, secrets, bind=bind)
            self._bound[names] = call
        return call

    def _bind_with(self, own: Sequence[Any], client: ClientTools) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the inner model with its own tools and those of one caller."""
        offered = client.offered(t.name for t in own if isinstance(t, BaseTool))
        return self.inner.bind_tools([*own, *offered], **client.choice)


class GovernedCall(Runnable[LanguageModelInput, AIMessage]):
    """One way of calling the inner model: counts against the limit first, meters the answer after."""

    def __init__(
        self,
        inner: Runnable[LanguageModelInput, AIMessage],
        fixed: dict[str, Any],
        max_iterations: int,
        model_name: str,
        secrets: tuple[str, ...],
        *,
        bind: Callable[[ClientTools], Runnable[LanguageModelInput, AIMessage]] | None = None,
    ) -> None:
        """Take the model with its tools bound, what the binding adds to each call, and how a caller's are bound as well."""
        self._bind = bind
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
        pass what is reserved, ModelFailedError or OutOfMemoryError for what the model raised, AnswerMismatchError for an
        answer that is not of the form that was asked for.
        """
        meter, options = CURRENT_METER.get(), CURRENT_OPTIONS.get()
        messages = whole_exchanges(cast("list[BaseMessage]", input))
        if options is None:
            return await self._metered(meter, messages, None)
        message = await self._answer(meter, _guided(messages, options.guidance), options)
        if options.client_tools is not None and (calls := options.client_tools.called(message)):
            meter.client_calls, meter.finish_reason = calls, "tool_calls"
        if options.invocation_id and (meter.client_calls or not message.tool_calls):
            message.response_metadata[INVOCATION] = options.invocation_id
        return message

    async def _answer(self, meter: CallMeter, messages: list[BaseMessage], options: CallOptions) -> AIMessage:
        """Return the model's answer, which is of the form that was asked for if it is a final one."""
        message = await self._metered(meter, messages, options)
        if options.schema is None or message.tool_calls:
            return message
        # What was cut off is told by its finish reason, and asking again would not make it shorter.
        if meter.finish_reason != "length" and (wrong := options.schema.wrong(str(message.text))):
            asked_again = [*messages, message, HumanMessage(correction(wrong), id=CORRECTION)]
            message = await self._metered(meter, asked_again, options)
            if wrong := options.schema.wrong(str(message.text)):
                raise mismatch(wrong)
        if options.sink is not None and (text := str(message.text)):
            await options.sink.put(text)
        return message

    async def _metered(self, meter: CallMeter, messages: list[BaseMessage], options: CallOptions | None) -> AIMessage:
        if meter.model_calls >= self._max_iterations:
            raise IterationLimitError(
                f"The agent used all of its {self._max_iterations} model iterations without coming to an answer.",
                hint="Ask for less in one call, or register the agent with a higher `max_iterations`.",
            )
        if options is not None:
            options = self._within_budget(messages, meter, options)
        meter.model_calls += 1
        streamed = options is not None and options.sink is not None and options.schema is None
        try:
            with span(f"chat {self._model_name}", kind="client", attributes=self._attributes) as traced:
                if options is None:
                    message = await self._inner.ainvoke(messages, **self._fixed)
                elif streamed:
                    message = await self._stream(messages, meter, options)
                else:
                    inner, settings = self._with(options)
                    message = await inner.ainvoke(messages, **settings)
                if used := message.usage_metadata:
                    traced.set(
                        {"gen_ai.usage.input_tokens": used["input_tokens"], "gen_ai.usage.output_tokens": used["output_tokens"]}
                    )
        except asyncio.CancelledError:
            if not streamed:
                charge_interrupted(meter, messages, self._sent_tools(options))
            raise
        except Exception as e:
            raise model_failure(e, self._model_name, self._secrets) from e
        charge(meter, message)
        return message

    def _within_budget(self, messages: list[BaseMessage], meter: CallMeter, options: CallOptions) -> CallOptions:
        """Return the options with an answer no longer than what is reserved pays for."""
        call = CURRENT_CALL.get(None)
        if call is None or call.budget is None:
            return options
        prompt = at_most_tokens(messages) + self._tools_tokens
        if options.client_tools is not None:
            prompt += schema_tokens(options.client_tools.functions)
        key = options.max_tokens_key
        most = call.budget.output_tokens(meter.quantities(), prompt, options.settings.get(key))
        return replace(options, settings=options.settings | {key: most})

    async def _stream(self, messages: list[BaseMessage], meter: CallMeter, options: CallOptions) -> AIMessage:
        sink = cast("asyncio.Queue[str | None]", options.sink)
        inner, settings = self._with(options)
        chunks: list[AIMessage] = []
        try:
            async for chunk in inner.astream(messages, **settings):
                chunks.append(chunk)
                text = chunk.content if isinstance(chunk.content, str) else str(chunk.text)
                if text:
                    await sink.put(text)
        except asyncio.CancelledError:
            charge_interrupted(meter, messages, self._sent_tools(options), _joined(chunks) if chunks else None)
            raise
        return _joined(chunks)

    def _sent_tools(self, options: CallOptions | None) -> Sequence[Any]:
        client = options.client_tools if options is not None else None
        return self._tools if client is None else [*self._tools, *client.functions]

    def _with(self, options: CallOptions) -> tuple[Runnable[LanguageModelInput, AIMessage], dict[str, Any]]:
        """Return what answers with `options`, and the keyword arguments of its call."""
        if options.client_tools is None or self._bind is None:
            return self._inner, self._fixed | options.settings
        return self._bind(options.client_tools), options.settings


def _joined(chunks: list[AIMessage]) -> AIMessage:
    parts = [c for c in chunks if isinstance(c, AIMessageChunk)]
    if len(parts) != len(chunks) or not parts:
        return chunks[-1]  # a model that does not stream answers once, in whole
    return cast("AIMessage", message_chunk_to_message(add_ai_message_chunks(*parts) if len(parts) > 1 else parts[0]))


def _guided(messages: list[BaseMessage], guidance: str) -> list[BaseMessage]:
    if not guidance:
        return messages
    first = messages[0] if messages else None
    if isinstance(first, SystemMessage):
        return [SystemMessage(f"{first.text}\n\n{guidance}"), *messages[1:]]
    return [SystemMessage(guidance), *messages]
