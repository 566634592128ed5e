"""An agent's inside: LangChain's `create_agent` over a governed model and granted tools.

Two graphs are compiled once: one without a checkpointer for calls that name no conversation (the hot path), and one
with, on the first call that names one.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import langsmith
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph

from cluster.agents.answer_schema import AnswerSchema
from cluster.agents.call import CURRENT_CALL, CURRENT_METER, Call, CallMeter
from cluster.agents.checkpointer import CheckpointStore
from cluster.agents.conversation_locks import ConversationLocks
from cluster.agents.governed_model import CURRENT_OPTIONS, INVOCATION, CallOptions, GovernedModel
from cluster.agents.middleware import GovernanceMiddleware, OnRefusal
from cluster.agents.model_failure import out_of_memory, redact
from cluster.agents.turns import Turns
from cluster.errors import (
    AgentFailedError,
    ConfigurationError,
    ConflictError,
    FieldError,
    InvalidRequestError,
    IterationLimitError,
    NotFoundError,
    SovereignError,
)

T = TypeVar("T")
Graph = CompiledStateGraph[Any, Any, Any, Any]
# Pieces of text that may wait for a slow reader before the model has to.
STREAM_BUFFER = 64


class Brain:
    """What answers an agent's calls. Several calls may run at once; turns of one conversation run one by one."""

    def __init__(
        self,
        model: BaseChatModel,
        tools: Sequence[BaseTool],
        *,
        instructions: str,
        max_iterations: int,
        model_name: str,
        checkpointer: CheckpointStore | None = None,
        locks: ConversationLocks | None = None,
        on_refusal: OnRefusal | None = None,
    ) -> None:
        _keep_tracing_here()
        self._model = GovernedModel(inner=model, max_iterations=max_iterations, model_name=model_name)
        self._model_name = model_name
        self._tools = list(tools)
        self._instructions = instructions
        self._middleware = GovernanceMiddleware(frozenset(t.name for t in tools), on_refusal)
        self._checkpointer = checkpointer
        self._plain = self._compile(None)
        self._threaded: Graph | None = None
        self._threaded_lock = asyncio.Lock()
        self._turns = Turns(locks=locks)
        self._model_fields = fields = type(model).model_fields
        self._max_tokens_key = (
            "max_output_tokens" if "max_output_tokens" in fields and "max_tokens" not in fields else "max_tokens"
        )

    async def run(self, call: Call, meter: CallMeter) -> str:
        """Return the agent's answer to `call`, counting what it takes in `meter` as it goes.

        Raises IterationLimitError, ModelFailedError, OutOfMemoryError, OverloadedError (too many turns wait in the
        conversation) or AgentFailedError. Cancelling the task stops the model call and the tools' processes.
        """
        meter.model = self._model_name
        options = self._options(call, None)
        call_token = CURRENT_CALL.set(call)
        meter_token = CURRENT_METER.set(meter)
        options_token = CURRENT_OPTIONS.set(options)
        try:
            if call.thread_id is None:
                return await self._turn(self._plain, call, None)
            return await self._in_thread(call, call.thread_id)
        except SovereignError:
            raise
        except Exception as e:
            raise _agent_failure(e) from e
        finally:
            CURRENT_OPTIONS.reset(options_token)
            CURRENT_METER.reset(meter_token)
            CURRENT_CALL.reset(call_token)

    async def stream(self, call: Call, meter: CallMeter) -> AsyncGenerator[str, None]:
        """Yield the model's text as it comes, metering like `run` and raising the same.

        The text of a turn that calls tools also has what the model says beside its tool calls. Closing the iterator
        stops the work. At most STREAM_BUFFER pieces wait for a slow reader; then the model does.
        """
        meter.model = self._model_name
        sink: asyncio.Queue[str | None] = asyncio.Queue(STREAM_BUFFER)
        # The work gets its own context, because a generator shares its caller's.
        context = contextvars.copy_context()
        context.run(CURRENT_CALL.set, call)
        context.run(CURRENT_METER.set, meter)
        context.run(CURRENT_OPTIONS.set, self._options(call, sink))
        work: Coroutine[Any, Any, str] = (
            self._turn(self._plain, call, None) if call.thread_id is None else self._in_thread(call, call.thread_id)
        )
        task = asyncio.get_running_loop().create_task(_and_close(work, sink), context=context)
        try:
            while (piece := await sink.get()) is not None:
                yield piece
            await task
        except (SovereignError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as e:
            raise _agent_failure(e) from e
        finally:
            if not task.done():
                while not sink.empty():  # room for the closing mark, so that the task can end
                    sink.get_nowait()
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def close(self) -> None:
        """Close the checkpointer; calls that still run fail."""
        self._turns.close()
        if self._checkpointer is not None:
            await self._checkpointer.close()

    def _compile(self, saver: BaseCheckpointSaver[Any] | None) -> Graph:
        graph: Graph = create_agent(
            self._model,
            self._tools,
            system_prompt=self._instructions or None,
            middleware=[self._middleware],
            checkpointer=saver,
        )
        return graph

    def _options(self, call: Call, sink: asyncio.Queue[str | None] | None) -> CallOptions | None:
        settings = self._settings(call.model_settings) if call.model_settings else {}
        if call.max_output_tokens is not None:
            settings[self._max_tokens_key] = call.max_output_tokens
        if call.temperature is not None:
            settings["temperature"] = call.temperature
        schema = AnswerSchema(call.response_schema) if call.response_schema is not None else None
        guidance = "\n\n".join(filter(None, (call.instructions, schema.guidance if schema else "")))
        kept_as = call.invocation_id if call.thread_id is not None else ""
        if not (settings or sink is not None or call.client_tools or guidance or kept_as or call.budget):
            return None
        return CallOptions(settings, sink, call.client_tools, schema, guidance, kept_as, self._max_tokens_key)

    def _settings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return `asked` for the model call; raises InvalidRequestError that names what this model does not take."""
        if unknown := sorted(name for name in asked if name != "stop" and name not in self._model_fields):
            wrong = [FieldError(name, f"the model {self._model_name} does not take it") for name in unknown]
            raise InvalidRequestError("This agent's model does not take all of that.", errors=wrong)
        return dict(asked)

    async def _in_thread(self, call: Call, thread_id: str) -> str:
        came_ns = time.monotonic_ns()
        async with self._turns.turn(thread_id):
            CURRENT_METER.get().turn_wait_us = (time.monotonic_ns() - came_ns) // 1_000
            store = self._checkpointer
            if store is None:
                raise ConfigurationError("This agent keeps no conversations, and the call names one.")
            graph = self._threaded or await self._open_threaded(store)
            config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
            if call.after is not None:
                _check_last((await graph.aget_state(config)).values.get("messages", ()), call.after)
            answer = await self._turn(graph, call, config)
            await store.forget_steps(thread_id)
            return answer

    async def _open_threaded(self, store: CheckpointStore) -> Graph:
        async with self._threaded_lock:
            if self._threaded is None:
                async with self._turns.opening():
                    self._threaded = self._compile(await store.saver())
            return self._threaded

    async def _turn(self, graph: Graph, call: Call, config: RunnableConfig | None) -> str:
        state = {"messages": _to_messages(call.messages)}
        # `ainvoke` is the same loop with a second stream mode, for interrupts, which this graph has none of.
        steps = graph.astream(
            state,
            config,
            stream_mode="values",
            output_keys="messages",
            # Without a checkpointer there is nothing to be durable, and LangGraph warns.
            durability=None if config is None else "sync",
        )
        messages: Any = ()
        meter = CURRENT_METER.get()
        async for after_step in steps:
            messages = after_step
            if meter.client_calls:  # the caller runs them, so the turn ends before the step that would
                await cast("AsyncGenerator[Any, None]", steps).aclose()
                break
        return _text(messages[-1])


async def _and_close(work: Awaitable[T], sink: asyncio.Queue[str | None]) -> T:
    try:
        return await work
    finally:
        # A reader that is still there makes room; one that is gone has made it before it cancelled.
        await sink.put(None)


def _check_last(messages: Sequence[BaseMessage], wanted: str) -> None:
    """Raise unless the last answer among `messages` is that of the invocation `wanted`."""
    answers = [m.response_metadata.get(INVOCATION) for m in messages if isinstance(m, AIMessage)]
    answers = [invocation_id for invocation_id in answers if invocation_id]
    if wanted not in answers:
        raise NotFoundError("The conversation has no such answer to go on from.", hint="It may have failed, or not been kept.")
    if wanted != answers[-1]:
        raise ConflictError(
            "The conversation has gone on since that answer.", hint="Go on from its last answer: conversations do not branch."
        )


def _to_messages(messages: list[dict[str, Any]]) -> list[BaseMessage]:
    if len(messages) == 1 and messages[0]["role"] == "user":
        return [HumanMessage(messages[0]["content"])]
    return convert_to_messages(messages)


def _text(message: BaseMessage) -> str:
    content = message.content if isinstance(message, AIMessage) else ""
    return content if isinstance(content, str) else str(message.text)


def _agent_failure(error: Exception) -> SovereignError:
    if isinstance(error, MemoryError):
        return out_of_memory()
    if isinstance(error, GraphRecursionError):
        return IterationLimitError("The agent's graph took more steps than it may without coming to an answer.")
    return AgentFailedError(f"The agent failed: {type(error).__name__}: {redact(str(error))}")


async def _inline(
    default: Callable[..., Awaitable[Any]], context: contextvars.Context, func: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    return context.run(func, *args, **kwargs)


def _keep_tracing_here() -> None:
    """Switch LangSmith's tracing off for this process, and its thread hops with it.

    Prompts do not leave the machine because a variable was set somewhere; and LangChain's tracing decorator on tool
    hooks goes to a thread pool twice a call even with tracing off.
    """
    langsmith.configure(enabled=False)
    langsmith.set_runtime_overrides(aio_to_thread=_inline)
