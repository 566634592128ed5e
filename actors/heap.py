"""How Python's garbage collector is set in processes that answer calls.

A process that has imported LangChain holds a great many objects that never go away. With many calls under way the
collector walks all of them again and again: at 64 calls at once it took half of an agent's CPU. What is there at the
start is therefore set aside, and young objects are looked at less often; memory that calls leave behind is still freed.
"""

from __future__ import annotations

import gc

# Allocations, less deallocations, between two looks at the youngest objects; a call makes a few hundred that live on.
YOUNG = 10_000


def settle(*, collect: bool) -> None:
    """Set aside what lives now. With `collect` garbage is freed first, which takes a moment: not while a caller waits."""
    if collect:
        gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
