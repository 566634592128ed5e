"""A conversation's turns run one at a time across processes; what stands for another process here is another open file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.agents.conversation_locks import ConversationLocks
from cluster.agents.turns import Turns
from cluster.errors import StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenant" / "agent.sqlite.lock"


async def test_a_turn_waits_for_another_replicas_turn_of_the_same_conversation(path: Path) -> None:
    """The one conversation waits, another one does not, and the turn goes on when the other's has ended."""
    one, other = Turns(locks=ConversationLocks(path)), Turns(locks=ConversationLocks(path))
    log: list[str] = []

    async def turn(name: str) -> None:
        async with other.turn(name):
            log.append(name)

    async with one.turn("c"):
        waits = asyncio.create_task(turn("c"))
        await turn("d")
        await asyncio.sleep(0)
        assert log == ["d"]
    await asyncio.wait_for(waits, 10)
    assert log == ["d", "c"]
    one.close()
    other.close()


async def test_a_wait_that_is_given_up_leaves_no_lock(path: Path) -> None:
    """A cancelled call neither holds the conversation nor keeps it from anybody."""
    one, other = ConversationLocks(path), ConversationLocks(path)
    async with one.held("c"):
        waits = asyncio.create_task(other.held("c").__aenter__())
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    async with asyncio.timeout(10), one.held("c"):
        pass
    one.close()
    other.close()


async def test_a_process_that_is_killed_holds_nothing(path: Path) -> None:
    """kill -9 in the middle of a turn lets the next process go on."""
    script = f"""
import asyncio, pathlib
from cluster.agents.conversation_locks import ConversationLocks
async def main():
    async with ConversationLocks(pathlib.Path({str(path)!r})).held("c"):
        print("held", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    locks = ConversationLocks(path)
    waits = asyncio.create_task(locks.held("c").__aenter__())
    await asyncio.sleep(0)
    assert not waits.done()
    holder.kill()
    await holder.wait()
    await asyncio.wait_for(waits, 10)
    locks.close()


async def test_without_a_place_for_locks_there_is_no_turn(tmp_path: Path) -> None:
    """It fails closed, and names the file."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="agent-lock"):
        await ConversationLocks(tmp_path / "file" / "agent-lock").held("c").__aenter__()


async def test_a_turn_that_ends_after_the_locks_were_closed_ends_without_an_error(tmp_path: Path) -> None:
    """A process that drains closes them though a last turn still runs; its lock is free by then."""
    path = tmp_path / "agent.locks"
    one, other = ConversationLocks(path), ConversationLocks(path)
    async with one.held("c"):
        one.close()
        async with other.held("c"):
            pass
    other.close()
