"""Where runs are kept: the port. All gateways of a cluster share one store; whatever one writes the others see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.runs.run import Multitask, Run, RunStatus
from cluster.runs.webhook import DeliveryStore


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be kept of one tenant, and how long."""

    # Runs that have not ended; one more is refused.
    unfinished: int = 1_000
    # Runs that ended; the oldest go.
    ended: int = 10_000
    keep_us: int = 7 * 86_400_000_000
    documents: int = 10_000
    document_bytes: int = 256 << 10
    # Of one run's answer; with more the run ends with an error.
    event_bytes: int = 4 << 20
    # Of what one page of a list holds; it may hold more by the last run.
    page_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a dead process' runs."""

    # Pending ones, which now have another owner.
    adopted: int
    # Those that ran and are lost.
    lost: list[Run]


@dataclass(frozen=True, slots=True)
class Change:
    """That a run changed, and how it stands now; `number` orders all changes of a store."""

    number: int
    run_id: str
    status: RunStatus
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A small document of a protocol; `version` counts its changes from 1."""

    id: str
    json: dict[str, Any]
    version: int
    created_us: int
    updated_us: int


@dataclass(frozen=True, slots=True)
class Which:
    """Which runs are asked for; None is any."""

    thread_id: str | None = None
    status: RunStatus | None = None
    agent_id: str | None = None
    # Microseconds since 1970 UTC, exclusive.
    updated_after_us: int | None = None


class RunStore(DeliveryStore, Protocol):
    """Runs, their events, and small documents, each under a tenant. Blocks: for threads. Fails closed.

    A transition is on disk when its method returns; events are when their run's next transition is.
    Another tenant's run is NotFoundError in the same words as one that does not exist.
    """

    def create(self, run: Run, multitask: Multitask) -> None:
        """Keep a new run as pending. Of its thread, others that have not ended are treated as `multitask` says.

        Raises ThreadBusyError for "reject", OverloadedError when the tenant has too many that have not ended.
        """
        ...

    def claim(self, owner: str, limit: int, now_us: int) -> list[Run]:
        """Return up to `limit` of `owner`'s pending runs that may begin, now running, the tenants taking turns.

        A run may begin when no earlier one of its thread is left.
        """
        ...

    def end(self, run_id: str, status: RunStatus, at_us: int, **changes: Any) -> Run:
        """Write how a running run ended; raises IllegalTransitionError when it has ended already."""
        ...

    def request_cancel(self, tenant: str, run_id: str, now_us: int) -> Run:
        """Cancel a pending run, tell the owner of a running one; return it as it stands then."""
        ...

    def to_cancel(self, owner: str) -> list[str]:
        """Return the ids of `owner`'s running runs that are to be cancelled."""
        ...

    def take_over(self, dead: str, owner: str, now_us: int) -> Taken:
        """Give a dead owner's pending runs to `owner`, and end its running ones as lost."""
        ...

    def owners(self) -> list[str]:
        """Return whoever has runs that have not ended."""
        ...

    def get(self, tenant: str, run_id: str) -> Run:
        """Return a run; raises NotFoundError."""
        ...

    def glance(self, tenant: str, run_id: str) -> tuple[RunStatus, int]:
        """Return a run's status and the number of its last event, for whoever asks often; raises NotFoundError."""
        ...

    def list_runs(self, tenant: str, kind: str, which: Which, *, after: str, limit: int) -> Sequence[Run]:
        """Return runs of a kind, the newest first, those older than `after`.

        They are fewer than `limit` also where they are large: what is empty is the end.
        """
        ...

    def count_runs(self, tenant: str, kind: str, which: Which) -> int:
        """Return how many there are."""
        ...

    def delete(self, tenant: str, run_id: str) -> None:
        """Remove a run that has ended; raises NotFoundError, ConflictError."""
        ...

    def append_event(self, run_id: str, text: str) -> int:
        """Add a piece to a running run's answer, return its number; raises PayloadTooLargeError over the bound."""
        ...

    def events(self, tenant: str, run_id: str, after: int, limit: int) -> list[tuple[int, str]]:
        """Return the pieces with numbers above `after`, in order."""
        ...

    def put_document(self, tenant: str, kind: str, id_: str, json: dict[str, Any], version: int | None) -> Document:
        """Write a document; with `version` only when it has that one, 0 for when there is none.

        Raises ConflictError, QuotaExceededError, PayloadTooLargeError.
        """
        ...

    def get_document(self, tenant: str, kind: str, id_: str) -> Document:
        """Return a document; raises NotFoundError."""
        ...

    def list_documents(self, tenant: str, kind: str, *, after: str, limit: int) -> Sequence[Document]:
        """Return documents of a kind by id, those after `after`."""
        ...

    def delete_document(self, tenant: str, kind: str, id_: str) -> None:
        """Remove a document; raises NotFoundError."""
        ...

    def prune(self, now_us: int) -> int:
        """Remove what is over its time or its count; return how many runs went."""
        ...

    def changed(self) -> bool:
        """Return whether anything was written since this was last asked; cheap, and for one thread."""
        ...

    def changes(self, since: int) -> list[Change]:
        """Return the runs that changed after change number `since`, in order, each once."""
        ...

    def last_change(self) -> int:
        """Return the number of the last change."""
        ...

    def close(self) -> None:
        """Close the store."""
        ...
