"""A shipper that is killed again and again, at every point of its work: each fact is in the lake exactly once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.journal.fact import Stream
from cluster.journal.usage_event import lost_event_id
from cluster.journal.writer import JournalWriter
from cluster.lake.layout import raw_prefix
from cluster.lake.ship import Shipper
from cluster.lake.verify import verify_raw
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_samples import admitted, call_fact, make_calls
from tests.sizes import soak

# Ships in small batches; before and after each write of its journal and each PUT it counts, and at its number it dies.
SHIPPER = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from cluster.journal.writer import JournalWriter
    from cluster.lake.ship import Shipper
    from cluster.storage.local_object_store import LocalObjectStore
    folder, left = Path(sys.argv[1]), int(sys.argv[2])

    def tick():
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(cls, name):
        real = getattr(cls, name)
        def method(self, *args, **kwargs):
            tick()
            result = real(self, *args, **kwargs)
            tick()
            return result
        setattr(cls, name, method)

    for name in ("append", "append_many", "sync"):
        deadly(JournalWriter, name)
    deadly(LocalObjectStore, "put_if_absent")
    shipper = Shipper.open(folder / "journal", LocalObjectStore(folder / "lake"), "n" + sys.argv[3], max_rows=6)
    shipper.step()
    print("alive", flush=True)
    sys.stdin.readline()
""")


def ship_and_die(folder: Path, number: int, node: int) -> None:
    command = [sys.executable, "-c", SHIPPER, str(folder), str(number), str(node)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    # It died at its number, or it is done and waits: then it is killed there.
    process.kill()
    assert process.wait() == -9
    process.stdout.close()
    process.stdin.close()


def rows(store: LocalObjectStore, stream: Stream) -> list[dict[str, Any]]:
    keys = [o.key for o in store.list(raw_prefix(stream))]
    return [row for key in keys for row in pq.read_table(pa.BufferReader(store.get(key))).to_pylist()]


def test_each_fact_is_shipped_once_whatever_is_killed(tmp_path: Path) -> None:
    """Threats 59, 60. Controls: intent before PUT (Shipper._intend), create-only keys, deterministic ids of losses.

    Agents die too, with calls open. At the end every call has exactly one final or one lost row in the raw segments.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    store, journals = LocalObjectStore(tmp_path / "lake"), tmp_path / "journal"
    agents = [JournalWriter(journals, f"agent.acme.a{i}", 1) for i in range(2)]
    finals: list[str] = []
    opened: list[str] = []
    killed = 0
    while killed < soak(8, 100):
        for i, agent in enumerate(agents):
            finals += make_calls(agent, rng.randrange(6))
            if rng.random() < 0.5:
                call = admitted()
                opened.append(call.event_id)
                agent.append(call_fact(call))
                agent.close()
                agents[i] = JournalWriter(journals, agent.writer_id, agent.epoch + 1)
        ship_and_die(tmp_path, rng.randrange(1, 45), rng.randrange(3))
        killed += 1
    for agent in agents:
        agent.close()
    with Shipper.open(journals, store, "n0") as shipper:
        while shipper.step().ended_journals:
            pass
    counted = Counter((r["kind"], r["event_id"]) for r in rows(store, Stream.USAGE))
    expected = [("final", i) for i in finals] + [("lost", lost_event_id(i)) for i in opened]
    assert counted == Counter(expected)
    ends = Counter(r["object_id"] for r in rows(store, Stream.AUDIT) if r["action"] == "journal:writer:end")
    assert set(ends.values()) == {1}
    assert {n for n in ends if n.startswith("agent.")} == {f"{a.writer_id}/e{e}" for a in agents for e in range(1, a.epoch + 1)}
    for stream in (Stream.USAGE, Stream.AUDIT):
        assert list(map(str, verify_raw(store, stream))) == []


def test_a_shipper_that_plans_anew_is_killed_at_every_step(tmp_path: Path) -> None:
    """Control: Outbox._replan. One of two journals of a batch that was not stored is gone; the other's rows ship once, always."""
    numbers = range(1, 40)
    chosen = sorted(random.sample(numbers, soak(3, len(numbers))))
    print(f"killed at {chosen}")
    before = tmp_path / "before"
    ids: dict[str, list[str]] = {}
    for tenant in ("a", "b"):
        with JournalWriter(before / "journal", f"agent.{tenant}.x", 1) as agent:
            ids[tenant] = make_calls(agent, 2)
    # No folder can be made where the lake should be.
    (before / "lake").touch()
    with Shipper.open(before / "journal", LocalObjectStore(before / "lake"), "n0") as shipper:
        assert shipper.step().store_error
    (before / "lake").unlink()
    shutil.rmtree(before / "journal" / "agent.a.x")
    for number in chosen:
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        ship_and_die(folder, number, 1)
        store = LocalObjectStore(folder / "lake")
        with Shipper.open(folder / "journal", store, "n0") as shipper:
            while shipper.step().ended_journals:
                pass
        assert sorted(r["event_id"] for r in rows(store, Stream.USAGE)) == sorted(ids["b"])
        alarms = [r["object_id"] for r in rows(store, Stream.AUDIT) if r["outcome"] == "failed"]
        assert alarms == ["agent.a.x/e1"]
        for stream in (Stream.USAGE, Stream.AUDIT):
            assert list(map(str, verify_raw(store, stream))) == []
