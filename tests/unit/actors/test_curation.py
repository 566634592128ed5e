"""Curation beside the shipper: it goes on whatever happens, and says what changes, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.curation import CurationLoop
from cluster.lake.curation.keys import plan_key
from cluster.settings import Settings
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_raw import curated, event, put, segment


@pytest.fixture
def loop(tmp_path: Path) -> CurationLoop:
    return CurationLoop(Settings.load(home=tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "lake")


def test_a_step_curates_and_says_what_is_in_quarantine(
    loop: CurationLoop, store: LocalObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """And whether there may be more; with nothing to do it says nothing."""
    put(store, segment([event(1), event(2, cpu_us=-1)], 1))
    assert loop.step()
    assert not loop.step()
    assert len(curated(store)) == 1
    assert [r.getMessage() for r in caplog.records] == ["usage went into quarantine and is not billed: 1 negative"]


def test_what_keeps_usage_from_being_curated_is_said_once(
    loop: CurationLoop, store: LocalObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A segment that is torn, then a plan that none of us wrote, then all well again."""
    key, whole = segment([event(1)], 1)
    put(store, (key, whole[:100]))
    for _ in range(2):
        assert not loop.step()
    put(store, (plan_key(1), b"{}"))
    for _ in range(2):
        assert not loop.step()
    (store.root / plan_key(1)).unlink()
    (store.root / key).write_bytes(whole)
    assert loop.step()
    said = [r.getMessage().partition(":")[0] for r in caplog.records]
    assert said == ["raw segments wait and are not curated", "usage is not curated", "usage is curated again"]


async def test_it_runs_on_every_interval_or_not_at_all(tmp_path: Path, store: LocalObjectStore) -> None:
    """An interval of 0 leaves it to the command."""
    put(store, segment([event(1)], 1))
    await CurationLoop(Settings.load(home=tmp_path, curate_interval_s=0)).run()
    assert curated(store) == []
    stepped, loop = asyncio.Event(), asyncio.get_running_loop()

    class Watched(CurationLoop):
        def step(self) -> bool:
            more = super().step()
            loop.call_soon_threadsafe(stepped.set)
            return more

    running = asyncio.ensure_future(Watched(Settings.load(home=tmp_path, curate_interval_s=0.001)).run())
    await stepped.wait()
    running.cancel()
    assert len(curated(store)) == 1
