"""The port of an agent's conversations: what lives between its calls."""

from __future__ import annotations

from typing import Any, Protocol

from langgraph.checkpoint.base import BaseCheckpointSaver


class CheckpointStore(Protocol):
    """An agent's conversations. Fails closed: a conversation that cannot be read or written fails its call."""

    async def saver(self) -> BaseCheckpointSaver[Any]:
        """Return LangGraph's saver, opening it on the first use; raises StorageError when it cannot be opened."""
        ...

    async def forget_steps(self, thread_id: str) -> None:
        """Drop all of a conversation's checkpoints but the last, which holds all of its messages."""
        ...

    async def close(self) -> None:
        """Close what was opened; does nothing otherwise."""
        ...
