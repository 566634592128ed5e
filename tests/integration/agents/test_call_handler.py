"""How an agent answers one call, over its real channel: what the caller hears and what the journal says agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.agent_books import AgentBooks
from actors.call_handler import CallHandler
from actors.channel import FLAG_STREAM, FrameType
from actors.start_order import StartOrder
from actors.wire import CallAnswer, CallOrder
from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.record import AgentRecord
from cluster.agents.scripted_model import ScriptedModel
from cluster.agents.spec import AgentSpec, Resources
from cluster.clock import FakeClock
from cluster.errors import AgentLostError, DeadlineExceededError, PayloadTooLargeError, SovereignError
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.journal.fact import Stream
from cluster.journal.usage_event import Outcome, UsageEvent
from cluster.journal.writer import JournalWriter
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from tests.contract.channel.peers import PATIENCE_S, Agent, an_agent, until
from tests.gates import open_gate
from tests.lake_samples import everything

ASKED = "w" * 4_000
ORDER = CallOrder("i", [{"role": "user", "content": ASKED}]).to_bytes()
FOR_EVER = [{"sleep_s": 3_600}]


class Watched(Brain):
    """A brain whose calls' meters can be read while they run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.meters: list[CallMeter] = []

    async def run(self, call: Call, meter: CallMeter) -> str:
        self.meters.append(meter)
        return await super().run(call, meter)

    def stream(self, call: Call, meter: CallMeter) -> AsyncGenerator[str, None]:
        self.meters.append(meter)
        return super().stream(call, meter)


class Deaf(Watched):
    """A brain that goes on to its answer when it is told to stop, as a tool that swallows the cancellation would."""

    async def run(self, call: Call, meter: CallMeter) -> str:
        try:
            return await super().run(call, meter)
        except asyncio.CancelledError:
            return "too late"


@dataclass
class Served:
    """An agent's handler behind its channel, and its books."""

    agent: Agent
    books: AgentBooks
    brain: Watched
    home: Path

    async def at_the_model(self) -> None:
        """Wait until a call has asked the model."""
        await until(lambda: any(meter.model_calls for meter in self.brain.meters))

    def rows(self) -> list[UsageEvent]:
        """Return the journal's last facts of calls, which are as many as those that were admitted."""
        facts = everything(self.home / "journal")
        rows = [UsageEvent.from_body(f.body) for f in facts if f.stream == Stream.USAGE]
        assert len(rows) == sum(f.stream == Stream.CALL for f in facts) - self.books.running
        return rows

    async def ended(self) -> list[UsageEvent]:
        """Return `rows` once no call runs."""
        await until(lambda: self.books.running == 0)
        return self.rows()


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serving(steps: list[dict[str, Any]], kind: type[Watched] = Watched, **options: Any) -> AsyncIterator[Served]:
        resources = Resources(100, 64 << 20)
        spec = AgentSpec(AgentId("planner"), "x", (), "scripted:steps", "", (), resources, (), "low", (), 10, 1)
        record = AgentRecord(TenantId("acme"), ProjectId("default"), spec, (), "d", "r", "p", "me", 1)
        settings = Settings(home=tmp_path)
        clock = FakeClock()  # it stands still: what ended a call is nothing that the books could tell by the time
        model = ScriptedModel(script="steps", steps=steps)
        brain = kind(model, [], instructions="", max_iterations=10, model_name="scripted:steps")
        with JournalWriter(tmp_path / "journal", "agent.acme.planner", 1, clock=clock) as journal:
            metrics = Metrics(settings.metrics_dir, "agent")
            books = AgentBooks(StartOrder(settings, "acme", record, 1), journal, metrics, clock, open_gate(tmp_path / "journal"))
            async with an_agent(CallHandler(books, brain), **options) as agent:
                yield Served(agent, books, brain, tmp_path)

    return serving


async def heard(served: Served, streamed: bool, deadline_s: float = PATIENCE_S, **options: Any) -> bytes:
    """Ask the agent; returns the result, or all chunks of a stream."""
    client = await served.agent.client(**options)
    if not streamed:
        return await client.call(ORDER, grant=served.agent.grant, deadline_s=deadline_s)
    return b"".join([chunk async for chunk in client.stream(ORDER, grant=served.agent.grant, deadline_s=deadline_s)])


async def test_a_call_past_its_deadline_is_recorded_as_such(serve: Serve) -> None:
    """What ended the call is what the channel ended it for, each time; the prompt was sent, and is charged."""
    async with serve(FOR_EVER) as served:
        ends = await asyncio.gather(*(heard(served, i % 2 == 0, 0.05) for i in range(50)), return_exceptions=True)
        rows = await served.ended()
    assert {type(e) for e in ends} == {DeadlineExceededError}
    assert Counter(r.outcome for r in rows) == {Outcome.DEADLINE: 50}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_that_leaves_is_charged_for_what_it_asked(serve: Serve, streamed: bool) -> None:
    """The model had the prompt when the caller gave up: the call is cancelled, billable and has its input tokens."""
    async with serve(FOR_EVER) as served:
        task = asyncio.create_task(heard(served, streamed))
        await served.at_the_model()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (row,) = await served.ended()
    assert (row.outcome, row.billable) == (Outcome.CANCELLED, True)
    assert 1_000 <= row.tokens_input_uncached <= 1_050


async def test_a_reader_that_stops_to_read_and_leaves_is_charged(serve: Serve) -> None:
    """The model waits for a slow reader when that one leaves: what was asked and said is in the row all the same."""
    async with serve([{"stream": ["w" * (20 << 10)] * 100}]) as served:
        peer = await served.agent.peer()
        grant = served.agent.grant.sign(ORDER, deadline_ms=30_000, flags=FLAG_STREAM)
        peer.call(1, ORDER, grant, flags=FLAG_STREAM, credit=1)
        assert (await peer.frame()).type == FrameType.CHUNK
        for _ in range(100):  # until the next chunk waits for credit
            await asyncio.sleep(0)
        await peer.close()
        (row,) = await served.ended()
    assert row.outcome == Outcome.CANCELLED
    assert 1_000 <= row.tokens_input_uncached <= 1_050
    assert row.tokens_output >= 2 * (20 << 10) // 4


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_the_platform_cuts_off_is_lost_and_free(serve: Serve, streamed: bool) -> None:
    """An agent that closes under a call says that it is gone; the row blames nobody else, bills nothing, and hides nothing."""
    async with serve(FOR_EVER) as served:
        task = asyncio.create_task(heard(served, streamed))
        await served.at_the_model()
        await served.agent.server.close()
        with pytest.raises(AgentLostError):
            await task
        (row,) = await served.ended()
    assert (row.outcome, row.billable) == (Outcome.LOST, False)
    assert row.tokens_input_uncached > 0


async def test_an_answer_that_comes_after_the_end_is_not_ok(serve: Serve) -> None:
    """A brain that swallows its cancellation has no say: the caller hears of the deadline, and so does the record."""
    async with serve(FOR_EVER, Deaf) as served:
        with pytest.raises(DeadlineExceededError):
            await heard(served, False, 0.05)
        (row,) = await served.ended()
    assert row.outcome == Outcome.DEADLINE


@pytest.mark.parametrize("streamed", [False, True])
async def test_half_a_character_is_no_fault(serve: Serve, streamed: bool) -> None:
    """A model that says half of a surrogate pair is answered with a mark in its place, and the call is settled once."""
    async with serve([{"stream": ["well ", "\ud83d", " done"]}]) as served:
        answer = await heard(served, streamed)
        rows = await served.ended()
    assert (answer.decode() if streamed else CallAnswer.from_bytes(answer).text) == "well ? done"
    assert [r.outcome for r in rows] == [Outcome.OK]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_fits_no_frame_is_recorded_as_an_error(serve: Serve, streamed: bool) -> None:
    """The caller gets an error instead of the answer, and the record says the same."""
    async with serve([{"say": "w" * (16 << 10)}]) as served:
        with pytest.raises(PayloadTooLargeError):
            await heard(served, streamed, max_frame=8 << 10)
        rows = await served.ended()
    assert [r.outcome for r in rows] == [Outcome.LIMIT]


async def test_the_answer_says_what_the_record_says(serve: Serve) -> None:
    """The usage that the caller is told is that of the row, to the microsecond."""
    async with serve([{"say": "ok"}]) as served:
        usage = CallAnswer.from_bytes(await heard(served, False)).usage
        (row,) = await served.ended()
    assert all(getattr(row, name) == getattr(usage, name) for name in usage.__dataclass_fields__)


async def test_a_call_that_fails_is_recorded_once(serve: Serve) -> None:
    """A model's own failure is the caller's answer and the row's outcome."""
    async with serve([{"fail": "quota"}]) as served:
        with pytest.raises(SovereignError, match="quota"):
            await heard(served, False)
        rows = await served.ended()
    assert [r.outcome for r in rows] == [Outcome.FAILED]


async def test_words_leave_together_and_the_first_at_once(serve: Serve) -> None:
    """A fast stream of many words comes in few frames, and its first words do not wait for the rest (control: GATHER_S)."""
    words = [f"w{i} " for i in range(400)]
    async with serve([{"stream": words}]) as served:
        client = await served.agent.client()
        stream = client.stream(ORDER, grant=served.agent.grant, deadline_s=PATIENCE_S)
        chunks = [chunk async for chunk in stream]
    assert b"".join(chunks).decode() == "".join(words)
    assert len(chunks[0]) < 100
    assert len(chunks) < 100


async def test_what_came_while_nobody_read_is_read_at_once(serve: Serve) -> None:
    """And it gives the agent room again, however much it was (control: CallStream.take_waiting)."""
    async with serve([{"stream": ["w" * (17 << 10)] * 200}]) as served:
        stream = (await served.agent.client()).stream(ORDER, grant=served.agent.grant, deadline_s=PATIENCE_S)
        pieces = [await anext(stream)]
        await until(lambda: len(stream._chunks) == 31)
        waiting = stream.take_waiting()
        assert len(waiting) == 31
        rest = [chunk async for chunk in stream]
        assert stream.ended
    assert sum(map(len, pieces + waiting + rest)) == 200 * (17 << 10)
