"""Histories of curation: several processes that are stopped, killed and lied to at any operation of the store."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from cluster.clock import Clock
from cluster.errors import IntegrityError, StorageError
from cluster.lake.curation.curator import Curator
from cluster.storage.object_store import ObjectInfo, PutOutcome
from tests.memory_store import MemoryObjectStore

# Of a hundred PUTs: killed before, killed after, not done with an error, done with an error.
FAULTS = {"kill_before": 5, "kill_after": 5, "refuse": 4, "lose_answer": 6}


class Killed(BaseException):
    """The process is gone, at once."""


class Process:
    """One process: a thread that runs only when the history lets it, up to its next operation of the store."""

    def __init__(self, store: Callable[[Process], View], clock: Clock, rows: int) -> None:
        # Bare locks, each released by the other side: a hand-over of ten microseconds.
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self.ended = False
        self.fault: BaseException | None = None
        self._curator = Curator(store(self), clock=clock, max_plan_rows=rows)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Let it run to its next operation of the store, or to its end."""
        self._go.release()
        self._stopped.acquire()

    def pause(self) -> None:
        """Wait, in the process's thread, until the history goes on with it."""
        self._stopped.release()
        self._go.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            for _ in range(2):
                with suppress(StorageError):
                    self._curator.step()
        except Killed:
            pass
        except BaseException as e:
            self.fault = e
        self.ended = True
        self._stopped.release()


class View:
    """The store as one process sees it."""

    def __init__(self, store: MemoryObjectStore, process: Process, rng: random.Random) -> None:
        self._store = store
        self._process = process
        self._rng = rng

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        if key.startswith("_probe/"):
            return self._store.put_if_absent(key, data, sha256=sha256)
        self._process.pause()
        (mood,) = self._rng.choices([*FAULTS, "well"], [*FAULTS.values(), 100 - sum(FAULTS.values())])
        if mood == "kill_before":
            raise Killed
        if mood == "refuse":
            raise StorageError("the store is away")
        outcome = self._create(key, data)
        if mood == "kill_after":
            raise Killed
        if mood == "lose_answer":
            raise StorageError("the answer was lost")
        return outcome

    def _create(self, key: str, data: bytes) -> PutOutcome:
        return self._store.put_if_absent(key, data, sha256="")

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def head(self, key: str) -> ObjectInfo | None:
        self._process.pause()
        return self._store.head(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        self._process.pause()
        return self._store.list(prefix, after)

    def describe(self) -> str:
        return "a view"


class PrivateStore(View):
    """A protocol without its plan step: what each process plans, only it knows, until it is killed."""

    def __init__(self, store: MemoryObjectStore, process: Process, rng: random.Random) -> None:
        super().__init__(store, process, rng)
        self._plans = MemoryObjectStore()

    def _create(self, key: str, data: bytes) -> PutOutcome:
        return (self._plans if key.startswith("usage/plan/") else self._store).put_if_absent(key, data, sha256="")

    def get(self, key: str) -> bytes:
        return (self._plans if key.startswith("usage/plan/") else self._store).get(key)


class OverwritingStore(View):
    """A store that writes a key twice."""

    def _create(self, key: str, data: bytes) -> PutOutcome:
        if key in self._store.objects:
            self._store.delete(key)
        return super()._create(key, data)


def run_history(
    store: MemoryObjectStore,
    arrivals: list[tuple[str, bytes]],
    *,
    clock: Clock,
    seed: int,
    view: type[View] = View,
    torn: str = "",
) -> None:
    """Store `arrivals` one by one while two processes curate; then let one that nothing happens to finish the work.

    Only half of what arrives under the key `torn` is there until near the end. Raises what any process ended by, but for being
    killed.
    """
    rng = random.Random(seed)

    def start() -> Process:
        return Process(lambda process: view(store, process, rng), clock, rng.choice([4, 8, 100]))

    def raise_fault(process: Process) -> None:
        if process.fault is not None:
            raise process.fault

    alive = [start() for _ in range(2)]
    waiting = [(key, data[: len(data) // 2] if key == torn else data) for key, data in arrivals]
    try:
        # Kills are not for ever: after so many starts the processes are left to end.
        starts = 0
        while alive:
            if waiting and rng.random() < 0.15:
                store.put_if_absent(*waiting.pop(0), sha256="")
            process = alive[rng.randrange(len(alive))]
            # One that sleeps through many steps of the others is as likely as one that takes turns with them.
            for _ in range(rng.choice([1, 1, 2, 30])):
                process.advance()
                if process.ended:
                    alive.remove(process)
                    raise_fault(process)
                    if (waiting or rng.random() < 0.3) and starts < 3:
                        starts += 1
                        alive.append(start())
                    break
    except IntegrityError:
        for process in alive:
            _abandon(process)
        raise
    if torn:
        store.objects.update((key, data) for key, data in arrivals if key == torn and key in store.objects)
    for key, data in arrivals:
        store.put_if_absent(key, data, sha256="")
    Curator(store, clock=clock).step()


def _abandon(process: Process) -> None:
    while not process.ended:
        process.advance()
