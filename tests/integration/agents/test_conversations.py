"""Conversations in a real SQLite file: kept over restarts, bounded, repaired, and never unpickled."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from cluster.agents.brain import Brain
from cluster.agents.call import Call, CallMeter
from cluster.agents.models import build_model
from cluster.agents.sqlite_checkpointer import SqliteCheckpointStore
from cluster.errors import SovereignError, StorageError


@tool
async def wait(seconds: int) -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


def new_brain(path: Path) -> Brain:
    return Brain(
        build_model("scripted:steps"),
        [wait],
        instructions="",
        max_iterations=5,
        model_name="scripted:steps",
        checkpointer=SqliteCheckpointStore(path),
    )


@pytest.fixture
async def brain(tmp_path: Path) -> AsyncIterator[Brain]:
    made = new_brain(tmp_path / "agent" / "c.sqlite")
    yield made
    await made.close()


def turn(text: str | list[dict[str, Any]], thread: str = "t") -> Call:
    content = text if isinstance(text, str) else json.dumps({"script": text})
    return Call("i", [{"role": "user", "content": content}], thread_id=thread)


async def sent(brain: Brain, text: str, thread: str = "t") -> int:
    """Return how many words the model was sent for this turn, as far as it can be told: the whole conversation."""
    meter = CallMeter()
    await brain.run(turn(text, thread), meter)
    return meter.tokens_input_uncached


async def test_a_conversation_is_remembered_over_a_restart(brain: Brain, tmp_path: Path) -> None:
    """Each turn sees the ones before, also from another process generation; other conversations do not."""
    assert await sent(brain, "one") == 1
    assert await sent(brain, "two") == 1 + 2 + 1
    await brain.close()
    again = new_brain(tmp_path / "agent" / "c.sqlite")
    assert await sent(again, "three") == 1 + 2 + 1 + 2 + 1
    assert await sent(again, "x", "other") == 1
    await again.close()


async def test_stream_and_run_share_a_conversation(brain: Brain) -> None:
    """A streamed turn is kept like any other."""
    assert [p async for p in brain.stream(turn("one two"), CallMeter())] == ["echo:", " one", " two"]
    assert await sent(brain, "three") == 2 + 3 + 1


async def test_the_file_opens_on_the_first_conversation_only(brain: Brain, tmp_path: Path) -> None:
    """A call without a conversation touches no file; the file is its owner's alone."""
    path = tmp_path / "agent" / "c.sqlite"
    await brain.run(Call("i", [{"role": "user", "content": "hi"}]), CallMeter())
    assert not path.exists()
    await brain.run(turn("hi"), CallMeter())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116  # the bits themselves
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


async def test_only_the_last_checkpoint_is_kept(brain: Brain, tmp_path: Path) -> None:
    """A conversation of n turns takes one row, not a copy of itself a step."""
    for n in range(10):
        await brain.run(turn(f"turn {n}"), CallMeter())
    with sqlite3.connect(tmp_path / "agent" / "c.sqlite") as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (1,)
    db.close()


async def test_an_interrupted_tool_call_does_not_spoil_the_conversation(brain: Brain) -> None:
    """Control: whole_exchanges. After a turn was cancelled in a tool, the next turn is sent with a result for it."""
    meter = CallMeter()
    script: list[dict[str, Any]] = [{"call_tool": {"name": "wait", "args": {"seconds": 1}}}]
    task = asyncio.create_task(brain.run(turn(script), meter))
    while not meter.tool_calls:  # noqa: ASYNC110  # a count, not an event
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answer = await brain.run(turn([{"say": "{tool}"}]), CallMeter())
    assert answer == "This tool call was interrupted."


async def test_turns_of_a_conversation_do_not_mix(brain: Brain) -> None:
    """Ten turns sent at once are answered one after the other: each sees exactly the ones before it."""
    meters = [CallMeter() for _ in range(10)]
    await asyncio.gather(*(brain.run(turn("word"), m) for m in meters))
    assert [m.tokens_input_uncached for m in meters] == [1 + 3 * n for n in range(10)]


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(Path(os.environ["SOVEREIGN_TEST_BOMB"])),))


@pytest.mark.parametrize("kind", ["pickle", "msgpack"])
async def test_a_changed_file_runs_no_code(brain: Brain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Control: the strict serde. A pickle, or a class named in the bytes, is not brought to life."""
    bomb = tmp_path / "bomb"
    monkeypatch.setenv("SOVEREIGN_TEST_BOMB", str(bomb))
    await brain.run(turn("one"), CallMeter())
    await brain.close()
    path = tmp_path / "agent" / "c.sqlite"
    if kind == "pickle":
        payload = pickle.dumps(_Bomb())
    else:
        import ormsgpack

        inner = ormsgpack.packb(("os", "mkdir", str(bomb)))
        payload = ormsgpack.packb(ormsgpack.Ext(0, inner))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE checkpoints SET type = ?, checkpoint = ?", (kind, payload))
    db.close()
    again = new_brain(path)
    with pytest.raises(SovereignError):
        await again.run(turn("two"), CallMeter())
    await again.close()
    assert not bomb.exists()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A damaged file fails the call with its name and what to do; stateless calls go on."""
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    brain = new_brain(path)
    with pytest.raises(StorageError, match=r"c\.sqlite"):
        await brain.run(turn("x"), CallMeter())
    assert await brain.run(Call("i", [{"role": "user", "content": "x"}]), CallMeter()) == "echo: x"
    await brain.close()


async def test_a_call_that_is_given_up_while_the_file_opens_leaves_it_in_order(tmp_path: Path) -> None:
    """Cancelled at whatever step of the opening, the connection is the store's, which closes it (control: the shield)."""
    for steps in (0, 1, 4, 16, 64, 128, 256):
        store = SqliteCheckpointStore(tmp_path / f"{steps}.sqlite")
        opening = asyncio.create_task(store.saver())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await store.close()
    gc.collect()  # a connection that is nobody's warns, which fails a test
