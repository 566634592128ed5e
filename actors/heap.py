"""How Python's garbage collector is set in processes that answer calls.

A process that has imported LangChain holds a great many objects that never go away. With many calls under way the
collector walks all of them again and again: at 64 calls at once it took half of an agent's CPU. What is there at the
start is therefore set aside, and young objects are looked at less often; memory that calls leave behind is still freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

from cluster.agents.memory_watchdog import held_bytes

# Allocations, less deallocations, between two looks at the youngest objects; a call makes a few hundred that live on.
YOUNG = 10_000


def settle(*, collect: bool) -> None:
    """Set aside what lives now. With `collect` garbage is freed first, which takes a moment: not while a caller waits."""
    if collect:
        gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)


class Leavings:
    """What agents leave behind in a process that is one after the other."""

    def __init__(self, declared_bytes: int) -> None:
        """Measure the process with its first agent, before its calls; each agent declares `declared_bytes`."""
        self._before = held_bytes()
        self._bound = declared_bytes // 4

    def few(self) -> bool:
        """Free what nobody needs, and return whether what is left takes little of the memory that the next agent declares.

        Quick, because agents come after what was set aside.
        """
        gc.collect()
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        return held_bytes() - self._before <= self._bound
