"""Facts that must not be lost though the disk does not take them now: the last facts of calls that ran."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from cluster.errors import StorageError
from cluster.journal.fact import Fact
from cluster.journal.writer import JournalWriter

# A bound for what anybody can cause; the last facts of calls are bounded by the calls that run.
MOST_NOTES = 1_000


class OwedFacts:
    """Writes to one journal, in order, what it must take sooner or later. Of use while the process lives; for any thread."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self._owed: deque[Fact] = deque()
        # Held over each write, or a fact that two pay for would be written twice.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return how many facts are held because the disk did not take them."""
        return len(self._owed)

    def pay(self) -> None:
        """Write all that is owed, in order; raises StorageError when the disk still does not take it."""
        with self._lock:
            while self._owed:
                self._journal.append(self._owed[0])
                self._owed.popleft()

    def write(self, fact: Fact, instead: Callable[[], Fact] | None = None) -> None:
        """Write what is owed, then `fact`; raises StorageError when the disk refuses: then that, or `instead`, is owed."""
        with self._lock:
            try:
                self.pay()
                self._journal.append(fact)
            except StorageError:
                self._owed.append(instead() if instead else fact)
                raise

    def note(self, fact: Fact) -> None:
        """As `write`, for what happened already and nobody waits for; raises StorageError only when too much is owed."""
        with self._lock:
            if len(self._owed) >= MOST_NOTES:
                self.pay()
            with contextlib.suppress(StorageError):  # it is owed now
                self.write(fact)
