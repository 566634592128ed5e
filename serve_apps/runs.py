"""Runs: calls that go on without the connection that asked for them, for every protocol that has such.

Any gateway answers for any run, for they share the store. One gateway carries a run; when it dies, what it had not begun
is taken over by another, and what it had begun ends as lost, for it may have done something and is not done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from actors.invoker import Invocation, Invoker
from cluster import wiring
from cluster.agents.egress import EgressPolicy
from cluster.clock import Clock, SystemClock
from cluster.errors import InternalError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import is_alive
from cluster.journal.writer import JournalWriter
from cluster.runs.run import Kind, Multitask, Run, RunEvent, RunStatus
from cluster.runs.run_store import RunStore, Which
from cluster.runs.webhook import WebhookSecrets
from cluster.settings import Settings
from serve_apps.run_carrier import RunCarrier
from serve_apps.run_documents import RunDocuments
from serve_apps.run_records import RunRecords
from serve_apps.webhooks import Webhooks

ANY: Final = Which()
# Events that are read at once.
_PAGE: Final = 256
# The fields of an Invocation that a run has as its own.
_OWN: Final = frozenset(
    {
        "principal",
        "agent_id",
        "messages",
        "deadline_s",
        "conversation_id",
        "request_id",
        "trace_id",
        "invocation_id",
        "until_stopped",
    }
)
OPTIONS: Final = frozenset(f.name for f in fields(Invocation)) - _OWN


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is to be run; the fields mean what those of `Run` do. `options` are further fields of the Invocation."""

    kind: Kind
    agent_id: str
    messages: list[dict[str, Any]]
    deadline_s: float
    thread_id: str | None = None
    multitask: Multitask = "enqueue"
    webhook: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    cancel_on_disconnect: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    # Its id, if it must be known before: a UUIDv7 that no run has had; empty for one that is made.
    run_id: str = ""
    request_id: str = ""
    trace_id: str = ""


class Runs(RunDocuments):
    """For one event loop: `begin` starts what carries runs and tells of changes, `aclose` ends it.

    Another tenant's run is NotFoundError everywhere, in the same words as one that does not exist.
    """

    def __init__(
        self,
        store: RunStore,
        invoker: Invoker,
        *,
        owner: str,
        is_alive: Callable[[str], bool],
        at_once: int,
        clock: Clock,
        egress: EgressPolicy,
        secrets: WebhookSecrets,
    ) -> None:
        """Carry runs as `owner`, which must be unique to this process; see `RunCarrier`. Webhooks go where `egress` lets them."""
        super().__init__(RunRecords(store))
        self._owner = owner
        self._clock = clock
        self._carrier = RunCarrier(self._records, invoker, owner=owner, is_alive=is_alive, at_once=at_once, clock=clock)
        self._secrets = secrets
        self._webhooks = Webhooks(self._records, egress=egress, secrets=secrets, clock=clock)
        self._tasks: list[asyncio.Task[None]] = []
        # Runs that are being cancelled because whoever waited for them has left.
        self._cancelling: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many runs this gateway carries now."""
        return self._carrier.running

    def begin(self) -> None:
        """Begin to carry runs, in the running loop; a second time does nothing."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._records.follow_for_ever(), name="follow runs"),
                asyncio.create_task(self._carrier.carry_for_ever(), name="carry runs"),
                asyncio.create_task(self._webhooks.deliver_for_ever(), name="deliver webhooks"),
            ]

    async def start(self, principal: Principal, request: RunRequest) -> Run:
        """Return the run, which is on disk and will be done, or end as lost, whatever happens to this process.

        Raises InvalidRequestError for a webhook that may not be called, ThreadBusyError when `multitask` is "reject" and the
        thread is busy, OverloadedError when the tenant has as many runs under way as it may.
        """
        self.begin()
        if unknown := set(request.options) - OPTIONS:
            raise InternalError(f"A run has no option {sorted(unknown)[0]}.")
        if request.webhook:
            self._webhooks.check(request.webhook)
        now_us = self._clock.now_us()
        run = Run(
            run_id=request.run_id or uuid7(),
            tenant=str(principal.tenant),
            project=str(principal.project),
            subject=principal.subject,
            scopes=tuple(sorted(principal.scopes)),
            created_us=now_us,
            updated_us=now_us,
            owner=self._owner,
            **{f.name: getattr(request, f.name) for f in fields(request) if f.name not in ("run_id", "multitask")},
        )
        await self._records.write(self._store.create, run, request.multitask)
        return run

    async def get(self, principal: Principal, run_id: str) -> Run:
        """Return a run as it stands; raises NotFoundError."""
        return await self._records.read(self._store.get, str(principal.tenant), run_id)

    async def _glance(self, principal: Principal, run_id: str) -> tuple[RunStatus, int]:
        return await self._records.read(self._store.glance, str(principal.tenant), run_id)

    async def list_runs(
        self, principal: Principal, kind: Kind, which: Which = ANY, *, after: str = "", limit: int = 100
    ) -> Sequence[Run]:
        """Return the tenant's runs of a kind, the newest first, those older than the run `after`.

        They are fewer than `limit` also where they are large: what is empty is the end.
        """
        return await self._records.read(self._store.list_runs, str(principal.tenant), kind, which, after=after, limit=limit)

    async def count_runs(self, principal: Principal, kind: Kind, which: Which) -> int:
        """Return how many such runs the tenant has."""
        return await self._records.read(self._store.count_runs, str(principal.tenant), kind, which)

    async def wait(self, principal: Principal, run_id: str, *, cancel_on_disconnect: bool | None = None) -> Run:
        """Return the run when it has ended.

        Cancelling this cancels the run when `cancel_on_disconnect` says so; None is what the run itself says.
        """
        self.begin()
        try:
            with self._records.watch(run_id) as changed:
                while True:
                    changed.clear()
                    status, _ = await self._glance(principal, run_id)
                    if status.ended:
                        return await self.get(principal, run_id)
                    await changed.wait()
        except asyncio.CancelledError:
            self.leave(principal, run_id, cancel_on_disconnect)
            raise

    async def events(
        self, principal: Principal, run_id: str, after: int = 0, *, cancel_on_disconnect: bool | None = None
    ) -> AsyncGenerator[RunEvent]:
        """Yield the run's events with numbers above `after`, as they come; the last one holds the run as it ended.

        Leaving before that cancels the run when `cancel_on_disconnect` says so; None is what the run itself says.
        """
        self.begin()
        try:
            with self._records.watch(run_id) as changed:
                while True:
                    changed.clear()
                    # Before its events: what has ended then has all of them on record.
                    status, last = await self._glance(principal, run_id)
                    page = await self._records.read(self._store.events, str(principal.tenant), run_id, after, _PAGE)
                    for seq, text in page:
                        yield RunEvent(seq, text)
                        after = seq
                    if len(page) == _PAGE:
                        continue
                    if status.ended:
                        if after <= last:
                            yield RunEvent(last + 1, "", await self.get(principal, run_id))
                        return
                    await changed.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.leave(principal, run_id, cancel_on_disconnect)
            raise

    async def cancel(self, principal: Principal, run_id: str) -> Run:
        """Cancel a run, whichever gateway carries it, and return it as it ended, which may be well.

        Returns when its model, tools and children have stopped and its bill is written.
        """
        await self._records.write(self._store.request_cancel, str(principal.tenant), run_id, self._clock.now_us())
        return await self.wait(principal, run_id, cancel_on_disconnect=False)

    async def delete(self, principal: Principal, run_id: str) -> None:
        """Remove a run that has ended; raises NotFoundError, or ConflictError while it is under way."""
        await self._records.write(self._store.delete, str(principal.tenant), run_id)

    async def webhook_secret(self, principal: Principal) -> str:
        """Return what the tenant checks its webhooks' signatures with."""
        return await self._records.read(self._secrets.of, principal.tenant)

    async def drain(self) -> None:
        """Wait for the runs that this gateway carries, and begin no others: another gateway takes those over."""
        await self._carrier.drain()

    async def aclose(self) -> None:
        """End everything; runs that this gateway carries end as lost."""
        await self._carrier.stop()
        tasks = [*self._tasks, *self._cancelling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._records.close()

    def leave(self, principal: Principal, run_id: str, cancel: bool | None = None) -> None:
        """Somebody who waited for a run has left: cancel it if it was to go on for nobody else; None: as it says."""
        if cancel is not False:
            task = asyncio.ensure_future(self._cancel_for(principal, run_id, cancel))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelled)

    async def _cancel_for(self, principal: Principal, run_id: str, cancel: bool | None) -> None:
        run = await self.get(principal, run_id)
        if not run.status.ended and (cancel or run.cancel_on_disconnect):
            await self.cancel(principal, run_id)

    def _cancelled(self, task: asyncio.Task[None]) -> None:
        self._cancelling.discard(task)
        if not task.cancelled():
            task.exception()  # seen: there is nobody to tell


def build_runs(settings: Settings, invoker: Invoker, journal: JournalWriter) -> Runs:
    """Return the runs of a gateway; that it lives is told by the lock of its journal, and so is that another does."""
    return Runs(
        wiring.open_run_store(settings),
        invoker,
        owner=str(journal.journal),
        is_alive=lambda owner: is_alive(settings.journal_dir, JournalId.parse(owner)),
        at_once=settings.runs_at_once,
        clock=SystemClock(),
        egress=EgressPolicy(any_public_host=True, operator_origins=settings.webhook_origin_list),
        secrets=WebhookSecrets(settings.secret_dir / "webhooks"),
    )
