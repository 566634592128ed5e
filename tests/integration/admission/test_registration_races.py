"""Registrations at the edge of a quota, by many at once and with governors that are killed (threats 39 and 59).

Quota and row are one transaction, bound to the version of the quota that was read and to the governor's epoch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.admission.registrar import EPOCH_NAME, Registrar
from cluster.coordination.coordination import Op
from cluster.coordination.epochs import current_epoch
from cluster.errors import QuotaExceededError
from cluster.identity.ids import AgentId
from cluster.journal.fact import Fact
from cluster.journal.writer import JournalWriter
from tests.governors import TRIAL, assert_whole, begin, changed_policies, open_store, principal, request
from tests.sizes import soak

ATTEMPTS, ROOM = 200, 37


def in_threads(count: int, work: object) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)  # type: ignore[operator]  # a function of one number
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def register_many(governor: Registrar, prefix: str, count: int) -> list[str]:
    """Try `count` registrations and return those that were acknowledged."""
    done = []
    for number in range(count):
        try:
            done.append(governor.register(principal(TRIAL), request(f"{prefix}-{number}", cpu="10m")).answer["agent_id"])
        except QuotaExceededError:
            continue
    return done


def roomy(folder: Path) -> Path:
    """Policies in which the trial plan has room for exactly ROOM agents of 10m and 64Mi."""
    return changed_policies(
        folder, "plans.yaml", {"trial.quota": {"cpu": f"{ROOM * 10 + 9}m", "memory": "64Gi", "agents": 10_000}}
    )


def test_threads_at_the_edge_of_the_quota_never_pass_it(tmp_path: Path) -> None:
    """200 registrations by 20 threads: as many as fit are acknowledged, and at no moment is more held than allowed."""
    governor = begin(tmp_path, policies=roomy(tmp_path))
    done: list[str] = []
    over: list[object] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            quota = governor.quota(TRIAL)
            if any(use["used"] > use["limit"] for use in quota.values()):
                over.append(quota)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        in_threads(20, lambda n: done.extend(register_many(governor, f"t{n}", ATTEMPTS // 20)))
    finally:
        stop.set()
        watcher.join()
    assert not over
    assert len(done) == ROOM
    assert assert_whole(tmp_path, governor, TRIAL) == sorted(done)
    # What is given back can be taken again, to the last place.
    for agent in done[:5]:
        governor.remove(TRIAL, AgentId(agent), principal(TRIAL))
    again: list[str] = []
    in_threads(5, lambda n: again.extend(register_many(governor, f"again{n}", 5)))
    assert len(again) == 5
    assert len(assert_whole(tmp_path, governor, TRIAL)) == ROOM
    governor.close()


CHILD = (
    "import json, sys; from tests.integration.admission import test_registration_races as t; t.child(**json.loads(sys.argv[1]))"
)


class Fatal:
    """Ends this process by SIGKILL at the n-th step that reaches a disk, before or after it is done."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class FatalJournal:
    """A real journal around which the process may end."""

    def __init__(self, journal: JournalWriter, fatal: Fatal) -> None:
        self._journal, self._fatal = journal, fatal

    def append(self, fact: Fact) -> int:
        self._fatal.step()
        seq = self._journal.append(fact)
        self._fatal.step()
        return seq

    def sync(self) -> int:
        seq = self._journal.sync()
        self._fatal.step()
        return seq

    def close(self) -> None:
        self._journal.close()


def tell(agent: str) -> None:
    """Print an acknowledged id by one write: threads must not mix their lines."""
    os.write(1, f"{agent}\n".encode())


def child(home: str, policies: str, prefix: str, epoch: int, fatal_at: int) -> None:
    """One process of these tests: registers until it is done or killed, and prints each acknowledged id."""
    folder = Path(home)
    store = open_store(folder)
    fatal = Fatal(fatal_at)
    if epoch:
        governor = begin(
            folder, policies=Path(policies), store=store, epoch=epoch, sink=JournalWriter(folder / "journal", f"side.{prefix}", 1)
        )
        for agent in register_many(governor, prefix, ATTEMPTS // 4):
            tell(agent)
        return governor.close()

    from cluster.coordination.journals import register_journal

    transact = store.transact

    def fatally(ops: Sequence[Op]) -> None:
        fatal.step()
        transact(ops)
        fatal.step()

    mine = register_journal(store, "governance", "test")
    store.transact = fatally  # type: ignore[method-assign]  # the process ends around the real thing
    journal = FatalJournal(JournalWriter(folder / "journal", "governance", mine), fatal)
    governor = begin(folder, policies=Path(policies), store=store, epoch=mine, sink=journal)
    governor.recover()

    def work(number: int) -> None:
        for agent in register_many(governor, f"{prefix}-{number}", 4):
            tell(agent)

    in_threads(3, work)
    return governor.close()


def start(**arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(arguments)], stdout=subprocess.PIPE, env=os.environ)


def test_processes_at_the_edge_of_the_quota_never_pass_it(tmp_path: Path) -> None:
    """200 registrations by 4 processes that share one governor's epoch: as many as fit, and nothing is lost or doubled."""
    policies = roomy(tmp_path)
    first = begin(tmp_path, policies=policies)
    store = open_store(tmp_path)
    epoch = current_epoch(store, EPOCH_NAME)
    store.close()
    processes = [start(home=str(tmp_path), policies=str(policies), prefix=f"p{n}", epoch=epoch, fatal_at=0) for n in range(4)]
    acknowledged = [agent for p in processes for agent in p.communicate(timeout=120)[0].decode().split()]
    assert [p.returncode for p in processes] == [0] * 4
    assert len(acknowledged) == ROOM
    assert assert_whole(tmp_path, first, TRIAL) == sorted(acknowledged)
    first.close()


def killed_at(tmp_path: Path, steps: Sequence[int]) -> None:
    """Kill one governor after the other at the given steps, and check after each that nothing is lost, left or doubled."""
    policies = roomy(tmp_path)
    acknowledged: set[str] = set()
    for life, step in enumerate(steps):
        process = start(home=str(tmp_path), policies=str(policies), prefix=f"l{life}", epoch=0, fatal_at=step)
        acknowledged |= set(process.communicate(timeout=120)[0].decode().split())
        assert process.returncode in {0, -signal.SIGKILL}, f"life {life}, step {step}"
        governor = begin(tmp_path, policies=policies)
        governor.recover()
        present = set(assert_whole(tmp_path, governor, TRIAL))
        # Whoever was told has an agent; one that was not told may have one too, and asking again counts nothing twice.
        assert acknowledged <= present, f"life {life}, step {step}"
        for agent in sorted(present)[:3]:
            assert not governor.register(principal(TRIAL), request(agent, cpu="10m")).created
        # Makes room, so that the next life registers again.
        for agent in sorted(present)[: len(present) // 2]:
            governor.remove(TRIAL, AgentId(agent), principal(TRIAL))
            acknowledged.discard(agent)
        assert_whole(tmp_path, governor, TRIAL)
        governor.close()


@pytest.mark.parametrize("steps", [range(3, 12)])
def test_a_governor_killed_at_each_step_of_a_registration_leaves_nothing_behind(tmp_path: Path, steps: Sequence[int]) -> None:
    """Before and after the decision, its sync, the transaction and the outcome: rows, quota and record agree."""
    killed_at(tmp_path, steps)


def test_a_governor_killed_anywhere_under_load_leaves_nothing_behind(tmp_path: Path) -> None:
    """At random steps of three threads: no agent without a decision, no acknowledged one lost, no quota leaked or doubled."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    steps = [rng.randrange(1, 120) for _ in range(soak(3, 100))]
    print(f"seed {seed}: {steps}")
    killed_at(tmp_path, steps)
