"""One admission transaction under crowds and kills: agents, quota, budget and reservations agree at every instant (threat 39).

Real SQLite, real journals, real processes ended by SIGKILL; no Ray, so that many governors can be killed in a short time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.registrar import EPOCH_NAME, Registrar
from cluster.agents.gang_request import parse_gang
from cluster.coordination.coordination import Op
from cluster.coordination.epochs import current_epoch
from cluster.coordination.journals import register_journal
from cluster.errors import ConflictError, NotFoundError, QuotaExceededError
from cluster.identity.ids import AgentId
from cluster.journal.writer import JournalWriter
from tests.governors import TRIAL, assert_whole, begin, changed_policies, open_store, principal, request
from tests.integration.admission.test_registration_races import Fatal, FatalJournal
from tests.sizes import soak

# So many are asked for, and so many fit.
CROWD, ROOM = soak(150, 1_000), soak(60, 100)
BUDGET = {"tokens": 7, "micro_usd": 3}
_MODULE = "tests.integration.admission.test_transaction"


def policies_for(folder: Path, agents: int) -> Path:
    """Policies in which the trial plan has room for exactly so many agents, by its quota."""
    change = {
        "trial.quota": {"cpu": "64", "memory": "64Gi", "agents": agents},
        "trial.max_replicas": 4,
        "trial.budget": {"tokens": 1_000_000, "micro_usd": 1_000_000},
    }
    return changed_policies(folder, "plans.yaml", change)


def try_to_register(governor: Registrar, names: Sequence[str], threads: int) -> list[str]:
    """Register each of `names` once, by many threads at the same time; returns those that were acknowledged."""

    def one(name: str) -> str:
        try:
            return governor.register(principal(TRIAL), request(name, cpu="10m", budget=BUDGET)).answer["agent_id"]
        except QuotaExceededError:
            return ""

    with ThreadPoolExecutor(threads) as pool:
        return [done for done in pool.map(one, names) if done]


@pytest.mark.parametrize("bound", ["quota", "budget"])
def test_threat_39_a_crowd_at_the_edge_gets_exactly_what_fits(tmp_path: Path, bound: str) -> None:
    """Many at once, 16 threads in each of two processes: exactly as many agents and reservations as there is room for."""
    policies = policies_for(tmp_path, ROOM if bound == "quota" else 10_000)
    if bound == "budget":
        change = {"trial.budget": {"tokens": ROOM * BUDGET["tokens"] + 6, "micro_usd": 1_000_000}}
        policies = changed_policies(tmp_path, "plans.yaml", change)
    governor = begin(tmp_path, policies=policies)
    store = open_store(tmp_path)
    arguments = {
        "home": str(tmp_path),
        "policies": str(policies),
        "epoch": current_epoch(store, EPOCH_NAME),
        "names": [f"p-{n}" for n in range(CROWD // 2)],
    }
    store.close()
    other = start("crowd", arguments)
    # Only when both are ready to begin, so that they meet.
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"ready\n"
    other.stdin.write(b"go\n")
    other.stdin.flush()
    mine = try_to_register(governor, [f"m-{n}" for n in range(CROWD - CROWD // 2)], 16)
    theirs = other.communicate(timeout=600)[0].decode().split()
    assert other.returncode == 0
    assert len(mine) + len(theirs) == ROOM
    assert assert_whole(tmp_path, governor, TRIAL) == sorted(mine + theirs)
    assert len(governor.reservations(TRIAL)) == ROOM
    governor.close()


def crowd(home: str, policies: str, epoch: int, names: list[str]) -> None:
    """The other process of that test: it shares the governor's epoch."""
    folder = Path(home)
    sink = JournalWriter(folder / "journal", "side.crowd", 1)
    governor = begin(folder, policies=Path(policies), epoch=epoch, sink=sink)
    tell("ready")
    sys.stdin.readline()
    for name in try_to_register(governor, names, 16):
        tell(name)
    governor.close()


def start(function: str, arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    code = f"import json, sys; import {_MODULE} as t; t.{function}(**json.loads(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )


def busy(home: str, policies: str, life: int, seed: int, fatal_at: int) -> None:
    """One governor: threads register, change, wake, end and remove agents and gangs until they are done or it is killed.

    Prints each acknowledgement: "+ agent" for what is there, "- agent" for what is gone, "? agent" for what is about to go.
    """
    folder = Path(home)
    store, fatal = open_store(folder), Fatal(fatal_at)
    transact = store.transact

    def fatally(ops: Sequence[Op]) -> None:
        fatal.step()
        transact(ops)
        fatal.step()

    epoch = register_journal(store, "governance", "test")
    store.transact = fatally  # type: ignore[method-assign]  # the process ends around the real thing
    journal = FatalJournal(JournalWriter(folder / "journal", "governance", epoch), fatal)
    governor = begin(folder, policies=Path(policies), store=store, epoch=epoch, sink=journal)
    governor.recover()

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        for turn in range(4):
            name = f"l{life}-{number}-{turn}"
            for step in rng.sample(STEPS, k=4):
                try:
                    step(governor, name, rng)
                except (QuotaExceededError, NotFoundError, ConflictError):
                    continue

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    governor.close()


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def _register(governor: Registrar, name: str, rng: random.Random) -> None:
    asked = request(name, cpu="10m", budget=BUDGET)
    governor.register(principal(TRIAL), asked, idempotency_key=f"key-{name}")
    tell(f"+ {name}")


def _change(governor: Registrar, name: str, rng: random.Random) -> None:
    replicas, tokens = rng.randrange(1, 5), rng.randrange(1, 50)
    changed = request(name, cpu=f"{rng.randrange(10, 30)}m", max_replicas=replicas, budget={"tokens": tokens, "micro_usd": 1})
    governor.change(principal(TRIAL), changed)
    tell(f"+ {name}")


def _live(governor: Registrar, name: str, rng: random.Random) -> None:
    _, generation = governor.begin_start(TRIAL, AgentId(name))
    _change(governor, name, rng)
    governor.mark_passive(TRIAL, AgentId(name), generation, "lost")


def _remove(governor: Registrar, name: str, rng: random.Random) -> None:
    tell(f"? {name}")
    governor.remove(TRIAL, AgentId(name), principal(TRIAL))
    tell(f"- {name}")


def _gang(governor: Registrar, name: str, rng: random.Random) -> None:
    members = [request(f"{name}-g{n}", cpu="10m", budget=BUDGET).model_dump(exclude_unset=True) for n in range(3)]
    for member in members:
        member["security_policy"]["resource_limits"] = {"cpu": "10m", "memory": "64Mi"}
    records, _ = governor.register_gang(principal(TRIAL), parse_gang({"gang_id": name, "agents": members}))
    for record in records:
        tell(f"+ {record.spec.agent_id}")
    if rng.random() < 0.5:
        for record in records:
            tell(f"? {record.spec.agent_id}")
        governor.remove_gang(TRIAL, name, principal(TRIAL))
        for record in records:
            tell(f"- {record.spec.agent_id}")


STEPS: list[Callable[[Registrar, str, random.Random], None]] = [_register, _register, _change, _live, _remove, _gang]


def test_threat_39_a_governor_killed_anywhere_leaves_no_orphan_no_leak_and_no_double(tmp_path: Path) -> None:
    """At random steps of threads that register, change, start and remove agents and gangs.

    After each kill quota and budget are the sums over the rows and the reservations, each row has its decision on record,
    a gang is there as a whole or not at all, and whoever asks again gets the answer that they had.
    """
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    policies = policies_for(tmp_path, 60)
    told: set[str] = set()
    killed = life = 0
    while killed < soak(5, 50):
        step = rng.randrange(1, 150)
        arguments = {"home": str(tmp_path), "policies": str(policies), "life": life, "seed": seed + life, "fatal_at": step}
        process = start("busy", arguments)
        said = process.communicate(timeout=120)[0].decode().splitlines()
        assert process.returncode in {0, -signal.SIGKILL}, f"seed {seed}, life {life}, step {step}"
        killed += process.returncode != 0
        life += 1
        doubtful = take_note(said, told)
        governor = begin(tmp_path, policies=policies)
        governor.recover()
        put_right(governor)
        present = set(assert_whole(tmp_path, governor, TRIAL))
        where = f"seed {seed}, life {life}, step {step}"
        assert told - doubtful <= present, where
        told &= present
        for gang in governor.gangs():
            assert set(gang.agents) <= present, where
        of_gangs = {a for gang in governor.gangs() for a in gang.agents}
        assert {a for a in present if "-g" in a} == of_gangs, where
        ask_again(governor, present - of_gangs)
        assert set(assert_whole(tmp_path, governor, TRIAL)) == present, where
        make_room(governor, sorted(present - of_gangs), told)
        assert_whole(tmp_path, governor, TRIAL)
        governor.close()


def take_note(said: list[str], told: set[str]) -> set[str]:
    """Keep in `told` who was told that an agent is there; returns those whose removal was asked for and not answered."""
    doubtful: set[str] = set()
    for line in said:
        sign, name = line.split()
        if sign == "+":
            told.add(name)
        elif sign == "-":
            told.discard(name)
        else:
            doubtful.add(name)
    return doubtful


def put_right(governor: Registrar) -> None:
    """Record that processes are gone, as the actors' recovery does: none of them was ever started."""
    for row in governor.live_rows():
        governor.mark_passive(TRIAL, AgentId(row.agent_id), row.generation, "lost")
    assert all(r.held is None and not r.outdated for r in governor.list(TRIAL, "", 10_000))


def ask_again(governor: Registrar, present: set[str]) -> None:
    """Whoever repeats a registration under its key gets the agent that there is, and nothing is counted twice."""
    for name in sorted(present)[:5]:
        again = governor.register(principal(TRIAL), request(name, cpu="10m", budget=BUDGET), idempotency_key=f"key-{name}")
        assert (again.created, again.answer["agent_id"]) == (False, name)


def make_room(governor: Registrar, present: list[str], told: set[str]) -> None:
    for name in present[: len(present) // 2]:
        governor.remove(TRIAL, AgentId(name), principal(TRIAL))
        told.discard(name)
    for gang in governor.gangs():
        governor.remove_gang(TRIAL, gang.gang_id, principal(TRIAL))
        for agent in gang.agents:
            told.discard(agent)
