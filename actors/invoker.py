"""The one road to an agent: every protocol, job and client calls through it, so that no bound can be passed by."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from actors.channel.unheard import GivenUp, end_of, spent_of
from actors.directory import AgentStream, Directory
from actors.leases import Leases, Reservation
from actors.turns import Place, Turns
from actors.wire import CallAnswer, CallOrder
from cluster.agents.budget import NO_BUDGET, Budget
from cluster.agents.client_tools import ClientTools
from cluster.errors import SovereignError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.journal.gate import JournalGate
from cluster.telemetry.metrics import Metrics
from cluster.telemetry.tracing import traceparent


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is asked of an agent, whatever protocol brought it."""

    principal: Principal
    agent_id: str
    # OpenAI chat messages, checked.
    messages: list[dict[str, Any]]
    # Within how many seconds of `came_ns` it must have ended, a wait and a wake included.
    deadline_s: float
    # Its turns are the agent's to remember; None for a call of its own.
    conversation_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    # As cluster/agents/call.py has them.
    model_settings: dict[str, Any] | None = None
    # A dictionary of its fields where it comes from a record.
    client_tools: ClientTools | dict[str, Any] | None = None
    response_schema: dict[str, Any] | None = None
    instructions: str = ""
    after: str | None = None
    request_id: str = ""
    trace_id: str = ""
    parent_invocation_id: str = ""
    # What a sub-call may spend of its caller's reservation, and the name under which; other calls get their own.
    reservation_id: str = ""
    budget: Budget = NO_BUDGET
    # Names the call in journals, the lake and answers; a call that is sent again after it began needs another.
    invocation_id: str = field(default_factory=uuid7)
    # Whether giving it up waits until the agent has stopped and its last fact is written.
    until_stopped: bool = False
    # When it came, by the monotonic clock in nanoseconds: what it waits from then on is its queue time.
    came_ns: int = field(default_factory=time.monotonic_ns)

    def left_s(self) -> float:
        """Return the seconds that are left of its time; 0 or less when it is over."""
        return self.deadline_s - (time.monotonic_ns() - self.came_ns) / 1e9

    def order(self) -> CallOrder:
        """Return it as the agent takes it, now."""
        return CallOrder(
            invocation_id=self.invocation_id,
            messages=self.messages,
            request_id=self.request_id,
            trace_id=self.trace_id,
            traceparent=traceparent(),
            project_id=str(self.principal.project),
            parent_invocation_id=self.parent_invocation_id,
            reservation_id=self.reservation_id,
            budget_tokens=self.budget.tokens,
            budget_micro_usd=self.budget.micro_usd,
            queue_us=(time.monotonic_ns() - self.came_ns) // 1_000,
            thread_id=self.conversation_id,
            max_output_tokens=self.max_output_tokens,
            temperature=self.temperature,
            model_settings=self.model_settings,
            client_tools=ClientTools(**tools) if isinstance(tools := self.client_tools, dict) else tools,
            response_schema=self.response_schema,
            instructions=self.instructions,
            after=self.after,
            depth=self.principal.depth,
        )


class InvocationStream:
    """An answer that comes piece by piece: iterate for its text, then read `answer`; `aclose` stops the agent's work."""

    def __init__(
        self,
        stream: AgentStream,
        invoker: Invoker,
        place: Place,
        reservation: Reservation | None = None,
        *,
        until_stopped: bool = False,
    ) -> None:
        self._stream = stream
        self._invoker: Invoker | None = invoker
        self._place = place
        self._reservation = reservation
        # What the call spent, once somebody said.
        self._spent: tuple[int, int] | None = None
        self._until_stopped = until_stopped

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for piece in self._stream:
                yield piece.decode("utf-8", "replace")
        except SovereignError as error:
            self._spent = error.spent
            raise
        self._spent = self.answer.spent

    @property
    def ended(self) -> bool:
        """Whether all of its text was read and `answer` is there."""
        return self._stream.ended

    @property
    def answer(self) -> CallAnswer:
        """What the call came to, with an empty text; raises RuntimeError before the end."""
        return CallAnswer.from_bytes(self._stream.result)

    @property
    def deadline_at(self) -> float:
        """When the call's time is up, by the loop's clock."""
        return self._stream.deadline_at

    async def aclose(self) -> None:
        """Give the call up, or back its place after its end; a second time does nothing."""
        invoker, self._invoker = self._invoker, None
        if invoker is not None:
            try:
                await self._stream.aclose()
                if self._until_stopped:
                    await self._stream.stopped()
            finally:
                invoker._turns.leave(self._place)
                if self._reservation is not None:
                    invoker._settle(self._reservation, self._spent, self._stream.given_up)


class Invoker:
    """Calls agents: fairly between tenants, within its places and within what its leases let it spend. For one event loop."""

    def __init__(
        self,
        directory: Directory,
        *,
        places: int,
        waiting: int = 0,
        gate: JournalGate | None = None,
        leases: Leases | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Have at most `places` calls under way and `waiting` waiting; with `gate` take none on that can't be recorded.

        Where nothing may wait, one tenant may have all places. Without `leases` it is for sub-calls, which draw on their
        callers' reservations.
        """
        self._directory = directory
        self._turns = Turns(places, waiting, metrics)
        self._gate = gate
        self.leases = leases

    @property
    def calls(self) -> int:
        """Calls that are held here, under way or waiting."""
        return self._turns.calls

    @property
    def load(self) -> int:
        """Calls that are a reason for more processes: what one tenant piles up beyond its share is none."""
        return self._turns.load

    async def run(self, invocation: Invocation) -> CallAnswer:
        """Return the agent's whole answer; its usage fact is in the journal before that.

        Raises OverloadedError at once when as many calls of the tenant wait as may, JournalFullError when the node can record
        no more, BudgetExceededError or RateLimitedError when the call can't be paid or comes too early, DeadlineExceededError,
        and what the agent raised or kept the call from it. Cancelling it stops the agent's work.
        """
        place = await self._enter(invocation)
        reservation, spent, end = None, None, None
        try:
            reservation, invocation = await self._reserve(invocation)
            answer = CallAnswer.from_bytes(
                await self._directory.call(
                    invocation.principal,
                    invocation.agent_id,
                    invocation.order().to_bytes(),
                    deadline_s=invocation.left_s(),
                    conversation=invocation.conversation_id,
                    until_stopped=invocation.until_stopped,
                )
            )
            spent = answer.spent
        except BaseException as error:
            spent, end = spent_of(error), end_of(error)
            raise
        finally:
            self._turns.leave(place)
            self._settle(reservation, spent, end)
        return answer

    async def open(self, invocation: Invocation) -> InvocationStream:
        """Return the answer as a stream, once its first piece or its end is there; it holds a place until `aclose`.

        Raises as `run` does; what happens later is raised to whoever iterates.
        """
        place = await self._enter(invocation)
        reservation = None
        try:
            reservation, invocation = await self._reserve(invocation)
            stream = await self._directory.stream(
                invocation.principal,
                invocation.agent_id,
                invocation.order().to_bytes(),
                deadline_s=invocation.left_s(),
                conversation=invocation.conversation_id,
                until_stopped=invocation.until_stopped,
            )
        except BaseException as error:
            self._turns.leave(place)
            self._settle(reservation, spent_of(error), end_of(error))
            raise
        return InvocationStream(stream, self, place, reservation, until_stopped=invocation.until_stopped)

    async def _reserve(self, invocation: Invocation) -> tuple[Reservation | None, Invocation]:
        if self.leases is None or invocation.reservation_id:
            return None, invocation
        reservation = await self.leases.reserve(invocation)
        return reservation, replace(invocation, reservation_id=reservation.reservation_id, budget=reservation.budget)

    def _settle(self, reservation: Reservation | None, spent: tuple[int, int] | None, end: GivenUp | None = None) -> None:
        if reservation is None or self.leases is None:
            return
        self.leases.settle(reservation, spent)
        if spent is None and end is not None:
            # Sooner than it could be read anywhere. One that never began at its agent stands nowhere else.
            end.add_done_callback(partial(self._heard, reservation))

    def _heard(self, reservation: Reservation, end: GivenUp) -> None:
        if self.leases is not None and not end.cancelled() and (spent := end.result()) is not None:
            self.leases.settle(reservation, spent)

    async def aclose(self) -> None:
        """Close the connections to agents, and give the leases back."""
        await self._directory.aclose()
        if self.leases is not None:
            await self.leases.aclose()

    async def _enter(self, invocation: Invocation) -> Place:
        if self._gate is not None:
            self._gate.check()
        return await self._turns.enter(str(invocation.principal.tenant), invocation.left_s())
