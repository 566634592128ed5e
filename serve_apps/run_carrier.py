"""What carries a gateway's runs: begins those that may, writes down what comes of them, ends those that are cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from actors.invoker import Invocation, Invoker
from actors.wire import CallAnswer
from cluster.clock import Clock
from cluster.errors import CancelledCallError, DeadlineExceededError, InternalError, OverloadedError, SovereignError
from cluster.runs.run import Run, RunLostError, RunStatus
from serve_apps.run_records import RunRecords
from serve_apps.run_text import RunText

log = logging.getLogger(__name__)

# How often other gateways are looked after: whether they live.
LOOK_S: Final = 1.0
PRUNE_S: Final = 60.0
# What an answer may hold beside its text and what it used.
_MORE: Final = frozenset(CallAnswer.__dataclass_fields__) - {"text", "finish_reason", "model", "usage"}


class RunCarrier:
    """For one event loop. A run that it began is ended by it, or is lost with its process: it is never begun again."""

    def __init__(
        self,
        records: RunRecords,
        invoker: Invoker,
        *,
        owner: str,
        is_alive: Callable[[str], bool],
        at_once: int,
        clock: Clock,
    ) -> None:
        """Carry `owner`'s runs, `at_once` of them; `is_alive` says whether another owner still lives."""
        self._records = records
        self._store = records.store
        self._invoker = invoker
        self._owner = owner
        self._is_alive = is_alive
        self._at_once = at_once
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        # Runs whose task was told to stop; a second time would interrupt its clean-up.
        self._stopping: set[str] = set()
        self._draining = False

    @property
    def running(self) -> int:
        """How many runs it carries now."""
        return len(self._running)

    async def carry_for_ever(self) -> None:
        """Carry runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        look_at = prune_at = loop.time()
        while True:
            self._records.moved.clear()
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + LOOK_S
                    await self._look_after_others()
                if loop.time() >= prune_at:
                    prune_at = loop.time() + PRUNE_S
                    await self._records.read(self._store.prune, self._clock.now_us())
                await self._begin()
                await self._stop_cancelled()
            except Exception:
                # As long as this goes on, what is on record will be done.
                log.exception("runs can't be carried on")
                await asyncio.sleep(LOOK_S)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._records.moved.wait()

    async def drain(self) -> None:
        """Begin nothing more, and wait for what runs; what waits is taken over when this process has ended."""
        self._draining = True
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def stop(self) -> None:
        """End what runs, as lost, and wait for that: this process ends."""
        self._draining = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _look_after_others(self) -> None:
        for owner in await self._records.read(self._store.owners):
            if owner != self._owner and not await self._records.read(self._is_alive, owner):
                taken = await self._records.write(self._store.take_over, owner, self._owner, self._clock.now_us())
                log.warning("%s ended: %d runs of it are lost, %d are taken over", owner, len(taken.lost), taken.adopted)

    async def _begin(self) -> None:
        free = self._at_once - len(self._running)
        if free <= 0 or self._draining:
            return
        # One tenant never has all places, for its runs may be long.
        each = max(1, self._at_once * 3 // 4)
        for run in await self._records.write(self._store.claim, self._owner, free, self._clock.now_us(), each):
            task = self._running[run.run_id] = asyncio.create_task(self._carry(run), name=f"run {run.run_id}")
            task.add_done_callback(partial(self._left, run.run_id))

    async def _stop_cancelled(self) -> None:
        for run_id in await self._records.read(self._store.to_cancel, self._owner):
            task = self._running.get(run_id)
            if task is not None and run_id not in self._stopping:
                self._stopping.add(run_id)
                task.cancel()

    def _left(self, run_id: str, _: asyncio.Task[None]) -> None:
        del self._running[run_id]
        self._stopping.discard(run_id)
        self._records.moved.set()  # there is room for another

    async def _carry(self, run: Run) -> None:
        text = RunText(self._records, run.run_id)
        status, result = RunStatus.ERROR, dict[str, Any]()
        try:
            with self._records.watch(run.run_id):  # so that a cancel at another gateway is seen soon
                answer = await self._call(run, text)
            status, result = RunStatus.SUCCESS, _result(answer)
        except asyncio.CancelledError:
            if run.run_id in self._stopping:
                status, error = RunStatus.CANCELLED, CancelledCallError("The run was cancelled.").to_problem()
            else:
                error = RunLostError(f"The gateway that carried run {run.run_id} ends.").to_problem()
            result = {"error": error}
        except SovereignError as refused:
            result = {"error": refused.to_problem()}
        except Exception:
            log.exception("the gateway failed on run %s", run.run_id)
            result = {"error": InternalError("The gateway failed.").to_problem()}
        try:
            await self._records.write(self._store.end, run.run_id, status, self._clock.now_us(), answer=text.whole, **result)
        except Exception:
            # It stays as running, and is lost when this process ends: it can't be said that it ended well.
            log.exception("the end of run %s can't be written", run.run_id)

    async def _call(self, run: Run, text: RunText) -> CallAnswer:
        """Return the end of the agent's answer; cancelling it returns when the agent has stopped and written its bill."""
        ends = asyncio.get_running_loop().time() + run.deadline_s
        while True:
            left = ends - asyncio.get_running_loop().time()
            if left <= 0:
                raise DeadlineExceededError(
                    f"The run could not begin within its {run.deadline_s:g} s.", hint="The cluster is full."
                )
            invocation = Invocation(
                run.principal(),
                run.agent_id,
                run.messages,
                left,
                conversation_id=run.thread_id,
                request_id=run.request_id,
                trace_id=run.trace_id,
                invocation_id=run.invocation_id,
                until_stopped=True,
                **run.options,
            )
            try:
                stream = await self._invoker.open(invocation)
            except OverloadedError as full:
                # Nothing was started, and a run in the background can wait.
                await asyncio.sleep(min(full.retry_after_s or 1.0, max(left, 0.0)))
                continue
            try:
                async with text.writing():
                    async for piece in stream:
                        await text.put(piece)
                return stream.answer
            finally:
                await stream.aclose()


def _result(answer: CallAnswer) -> dict[str, Any]:
    more = {name: value for name in _MORE if (value := getattr(answer, name))}
    usage = asdict(answer.usage)
    return {"finish_reason": answer.finish_reason, "model": answer.model, "usage": usage, "output": more}
