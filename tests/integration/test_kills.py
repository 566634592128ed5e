"""Every part is killed under load; every acknowledged call has exactly one final usage event (controls named below)."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from actors.marked import marked
from actors.run_state import read_state
from tests.servers.cluster import RunningCluster, eventually, running_cluster
from tests.sizes import SOAK, soak

AGENTS = ["victim-a", "victim-b", "victim-c"]
PARTS = {
    "agent": "AgentActor",
    "governance": "GovernanceActor",
    "gateway": "ServeReplica:sovereign",
    "limiter": "LimiterActor",
    "shipper": "ShipperActor",
    "controller": "ServeController",
    "control store": "/gcs_server",
}
# What a client may see of a kill: a connection that broke, or an answer that says which part was away.
# A limiter that was started again begins with empty buckets, so some calls come too early for a moment.
REFUSALS = {"429", "502", "503", "stream:agent_lost", "ReadError", "RemoteProtocolError", "ConnectError"}


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster that may be hurt."""
    with running_cluster(tmp_path_factory.mktemp("hurt") / "home", num_cpus=8, warm_pool=2) as running:
        for agent in AGENTS:
            assert running.register(agent, model="scripted:echo").status_code == 201
            assert running.ask(agent).status_code == 200
        yield running


class Load:
    """Two clients of each agent that call without pause, one of them in streams, and keep the id of every call answered.

    A stream is answered when it has ended with [DONE]; one that broke, or ended with an error, was not.
    """

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        # How many calls of each client were answered.
        self.progress: Counter[tuple[str, bool]] = Counter()
        self._lock = threading.Lock()
        clients = [(agent, streams) for agent in AGENTS for streams in (False, True)]
        self._threads = [threading.Thread(target=self._run, args=client) for client in clients]

    def _run(self, agent: str, streams: bool) -> None:
        body = {"model": agent, "messages": [{"role": "user", "content": f"{agent} {streams}"}], "stream": streams}
        with httpx.Client(base_url=self._cluster.state.http_url, headers=self._cluster.headers, timeout=30) as http:
            while not self._stop.is_set():
                try:
                    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
                    called, refused = outcome(answer.status_code, lines, streams=streams)
                except httpx.HTTPError as e:
                    called, refused = "", type(e).__name__
                with self._lock:
                    if called:
                        self.answered[called] += 1
                        self.progress[agent, streams] += 1
                    else:
                        self.refused[refused] += 1
                if not called:  # as clients do, and so that the CPU is there for what restarts
                    self._stop.wait(0.05)

    def await_every_client(self, *, within_s: float = 60) -> None:
        """Wait until each client of each agent has had more answers than now."""
        with self._lock:
            before = self.progress.copy()
        clients = [(agent, streams) for agent in AGENTS for streams in (False, True)]
        eventually(lambda: [c for c in clients if self.progress[c] < before[c] + 5], lambda behind: not behind, within_s=within_s)

    def __enter__(self) -> Load:
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for t in self._threads:
            t.join()


def outcome(status: int, lines: list[str], *, streams: bool) -> tuple[str, str]:
    """Return the id of a call that was answered, or why it was not."""
    if status != 200:
        return "", str(status) if lines and "code" in json.loads(lines[0])["error"] else f"{status} without a reason"
    if streams and lines[-1:] != ["[DONE]"]:
        last = json.loads(lines[-1])
        return "", f"stream:{last['error']['code']}" if "error" in last else "stream:ended early"
    return json.loads(lines[0])["id"].removeprefix("chatcmpl-"), ""


def finals(cluster: RunningCluster) -> Counter[str]:
    """Count the final rows of each call in the lake, raw, so that nothing hides a duplicate."""
    rows = [r for agent in AGENTS for r in cluster.usage(agent)]
    return Counter(r["invocation_id"] for r in rows if r["kind"] == "final")


def assert_counted_once(cluster: RunningCluster, load: Load) -> None:
    """Each call that was answered has one final row; the others were refused in words that a client can act on."""
    counted = eventually(lambda: finals(cluster), lambda seen: not (load.answered.keys() - seen.keys()), within_s=60)
    assert {i: n for i, n in counted.items() if n > 1} == {}
    print(load.refused)
    assert not set(load.refused) - REFUSALS, load.refused
    assert cluster.audit(action="reconciler:actor:kill") == [], "one of the platform's own was taken for a stray"


def kills(rng: random.Random, rounds: int) -> list[str]:
    """Return which part is killed when: all in each round, in any order, and the control store once in five rounds.

    It may die ten times in ten minutes, then the head ends for good.
    """
    others = sorted(PARTS.keys() - {"control store"})
    order = [rng.sample([*others, "control store"] if n % 5 == 0 else others, len(others) + (n % 5 == 0)) for n in range(rounds)]
    return [part for parts in order for part in parts]


def test_kill_every_part_under_load(hurt: RunningCluster) -> None:
    """kill -9 of every part in turn, Ray's too: no acknowledged call is lost or counted twice.

    Controls: actors/agent_books.py CallBooks.settle (journal before the answer), cluster/lake/ship.py (create-only
    segments under fixed keys), actors/directory.py Directory.call (a call that was lost midway is not sent again).
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Load(hurt) as load:
        load.await_every_client()
        for part in kills(rng, rounds=soak(1, 40)):
            victim = eventually(lambda name=PARTS[part]: hurt.processes(name))[0]
            victim.send_signal(signal.SIGKILL)
            load.await_every_client()
    assert sum(load.answered.values()) > 100
    print(f"{sum(load.answered.values())} calls answered")
    assert_counted_once(hurt, load)
    settled = {r["reservation_id"] for a in AGENTS for r in hurt.usage(a) if r["kind"] == "final"}
    lost = [r for a in AGENTS for r in hurt.usage(a) if r["kind"] == "lost"]
    assert not settled & {r["reservation_id"] for r in lost}


def test_calls_go_on_while_the_control_store_is_away(hurt: RunningCluster) -> None:
    """Live agents and the gateway do not need it; when it is back it knows every part, and agents can be woken and registered.

    Control: actors/ray_head.py LastingNode.dead_processes, and the control store's disk (actors/ray_environment.py).
    """
    [head] = hurt.processes("actors.ray_head")
    # An earlier test may have killed them just now.
    eventually(lambda: hurt.http.get("/api/v1/status").status_code, lambda status: status == 200, within_s=60)
    eventually(lambda: hurt.processes("ShipperActor"), within_s=60)
    before = {p.pid for name in ("GovernanceActor", "ShipperActor") for p in hurt.processes(name)}
    with Load(hurt) as load:
        load.await_every_client()
        head.suspend()  # it would start another one at once
        try:
            [store] = hurt.processes(PARTS["control store"])
            store.kill()
            refused = load.refused.copy()
            load.await_every_client()
            load.await_every_client()
            assert load.refused == refused
        finally:
            head.resume()
        eventually(lambda: [p.pid for p in hurt.processes(PARTS["control store"]) if p.pid != store.pid])
        hurt.register("afterwards", model="scripted:ok")
        assert eventually(lambda: hurt.ask("afterwards").status_code, lambda status: status == 200, within_s=60)
        load.await_every_client()
    assert_counted_once(hurt, load)
    assert {p.pid for name in ("GovernanceActor", "ShipperActor") for p in hurt.processes(name)} == before


def test_a_killed_agent_ends_its_open_calls_as_lost(hurt: RunningCluster) -> None:
    """SIGKILL in the middle of a call: the caller gets 503, nothing is acknowledged, and the reservation ends lost.

    Control: cluster/lake/ship.py, the `lost` rows of a dead journal's open calls.
    """
    hurt.register("doomed")
    assert hurt.ask("doomed", json.dumps({"script": [{"say": "awake"}]})).status_code == 200
    size = hurt.journal_bytes("doomed")
    answers: list[httpx.Response] = []
    text = json.dumps({"script": [{"sleep_s": 60}, {"say": "never"}]})
    caller = threading.Thread(target=lambda: answers.append(hurt.ask("doomed", text)))
    caller.start()
    # The first fact of the call is in the journal, so it was admitted.
    eventually(lambda: hurt.journal_bytes("doomed") > size)
    victim = _holder(hurt, "doomed")
    assert victim is not None
    psutil.Process(victim).kill()
    caller.join(30)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "agent_lost"
    rows = eventually(lambda: [r for r in hurt.usage("doomed") if r["kind"] == "lost"])
    assert len(rows) == 1
    assert hurt.ask("doomed", json.dumps({"script": [{"say": "again"}]})).status_code == 200


def _holder(cluster: RunningCluster, agent: str) -> int | None:
    for path in (cluster.settings.journal_dir / f"agent.default.{agent}").rglob("lock"):
        for process in cluster.processes("AgentActor"):
            if any(f.path == str(path) for f in process.open_files()):
                return process.pid
    return None


def test_a_killed_agents_name_never_leads_to_a_stale_process(hurt: RunningCluster) -> None:
    """After a kill it answers from a new generation, and its rows say so (control: cluster/agents/life.py mint_process)."""
    hurt.register("renamed", model="scripted:ok")
    assert hurt.ask("renamed").status_code == 200
    for _ in range(soak(2, 20)):
        first = _holder(hurt, "renamed")
        assert first is not None
        psutil.Process(first).kill()
        eventually(lambda: hurt.ask("renamed").status_code, lambda s: s == 200)
        assert _holder(hurt, "renamed") != first
    rows = eventually(lambda: hurt.usage("renamed"), lambda r: len({x["writer_epoch"] for x in r}) >= soak(3, 21))
    generations = [r["writer_epoch"] for r in sorted(rows, key=lambda r: r["event_time"])]
    assert generations == sorted(generations)


def test_killing_governance_midway_leaves_no_orphan_and_loses_no_registration(hurt: RunningCluster) -> None:
    """Registrations and wakes go on while governance is killed: what was answered exists, and every process has its record.

    Control: actors/governance.py GovernanceActor._recover.
    """
    registered: list[str] = []

    def register() -> None:
        for i in range(soak(12, 100)):
            name = f"orphan-{i}"
            answer = hurt.register(name, model="scripted:ok", cpu="10m")
            if answer.status_code in (200, 201):
                registered.append(name)
                if i % 6 == 0:
                    hurt.ask(name)

    worker = threading.Thread(target=register)
    worker.start()
    for _ in range(soak(2, 20)):
        count = len(registered)
        for p in hurt.processes("GovernanceActor"):
            p.kill()
        eventually(lambda c=count: len(registered) > c or not worker.is_alive(), within_s=60)
    worker.join()
    listed = {a["agent_id"] for a in hurt.http.get("/api/v1/agents?limit=1000").json()["agents"]}
    assert set(registered) <= listed
    live = {x["agent_id"] for x in hurt.http.get("/api/v1/status").json()["live"]}
    holders = {a for a in listed if _holder(hurt, a) is not None}
    assert holders == live


def say(cluster: RunningCluster, text: str) -> int:
    """Ask in one long conversation, again if the connection broke, and return how much of it the agent was given."""

    def ask() -> int:
        with contextlib.suppress(httpx.TransportError):  # one that was kept open to a way in that is replaced
            answer = cluster.ask("rememberer", text, metadata={"conversation_id": "c"})
            return int(answer.json()["usage"]["prompt_tokens"]) if answer.status_code == 200 else 0
        return 0

    return eventually(ask, within_s=60)


def kill_all(cluster: RunningCluster) -> None:
    """End Ray and everything that it runs at once, as if the machine had lost its power."""
    for process in marked(cluster.state.cluster_id):
        with contextlib.suppress(psutil.Error):
            process.kill()


def test_a_killed_head_is_started_again_and_agents_wake_with_their_state(hurt: RunningCluster) -> None:
    """kill -9 of the whole head under load: the same address answers again, nothing registered or counted is lost.

    Controls: actors/supervisor.py Supervisor._start_again, actors/governance.py GovernanceActor._recover.
    """
    hurt.register("rememberer", model="scripted:echo")
    told = say(hurt, "one")
    registered = {a["agent_id"] for a in hurt.http.get("/api/v1/agents?limit=1000").json()["agents"]}
    with Load(hurt) as load:
        for _ in range(soak(1, 5)):
            load.await_every_client()
            kill_all(hurt)
            load.await_every_client(within_s=180)
            # Calls are answered before the start is over, and one that fails on a busy machine is done again.
            eventually(lambda: read_state(hurt.settings), lambda s: s is not None and s.status == "ready", within_s=180)
            assert say(hurt, "more") > told
    assert_counted_once(hurt, load)
    assert {a["agent_id"] for a in hurt.http.get("/api/v1/agents?limit=1000").json()["agents"]} == registered
    state = eventually(lambda: read_state(hurt.settings), lambda s: s is not None and s.status == "ready", within_s=60)
    assert state is not None
    assert (state.cluster_id, state.http_url) == (hurt.state.cluster_id, hurt.state.http_url)


@pytest.mark.skipif(not SOAK, reason="by design: it starts a cluster once more, so `make soak` has it")
def test_up_after_the_supervisor_was_killed_too(hurt: RunningCluster) -> None:
    """Everything of the cluster is killed, its supervisor first: the next `up` finds agents, conversations and rows.

    The last test here: the cluster is another one afterwards. Control: actors/topology.py _only_one.
    """
    hurt.register("rememberer", model="scripted:echo")
    told = say(hurt, "one")
    with Load(hurt) as load:
        load.await_every_client()
        psutil.Process(hurt.state.pid).kill()
        # Not all: what a killed supervisor leaves running must not stand in the way of the next one.
        for name in ("AgentActor", "ShipperActor", "/gcs_server"):
            for process in hurt.processes(name):
                process.kill()
    with running_cluster(hurt.settings.home, num_cpus=8, warm_pool=2) as again:
        assert say(again, "more") > told
        assert_counted_once(again, load)
        assert list(marked(hurt.state.cluster_id)) == []


def test_threat_80_calls_at_the_edge_of_a_budget_with_kills(hurt: RunningCluster) -> None:
    """Many calls at once for more than there is, with kill -9 of gateway, limiter and agent: never over, and usable to the end.

    Controls: cluster/limits/limiter.py Limiter.exchange, cluster/limits/fates.py Fates.of, actors/limiter.py
    LimiterActor._recover.
    """
    calls, used = soak(200, 10_000), {"input_tokens": 150, "output_tokens": 20, "total_tokens": 170}
    budget = calls * used["total_tokens"] * 9 // 10
    assert hurt.register("edge", capabilities=["conversation"], budget={"tokens": budget, "micro_usd": 1_000}).status_code == 201
    text = json.dumps({"script": [{"say": "spent", "usage": used}]})
    seen: Counter[str] = Counter()

    def ask() -> str:
        # Short, so that what a killed gateway had on its way to nobody is soon known to be nothing.
        headers = hurt.headers | {"x-deadline-s": "5"}
        body = {"model": "edge", "messages": [{"role": "user", "content": text}], "max_tokens": 20}
        try:
            answer = httpx.post(f"{hurt.state.http_url}/v1/chat/completions", json=body, headers=headers, timeout=30)
        except httpx.HTTPError as e:
            return type(e).__name__
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

    assert ask() == "ok"
    with ThreadPoolExecutor(soak(16, 128)) as pool:
        under_way = [pool.submit(lambda: seen.update([ask()])) for _ in range(calls * 11 // 10)]
        for part in ("gateway", "limiter", "agent") * soak(1, 5):
            if part == "agent":
                psutil.Process(eventually(lambda: _holder(hurt, "edge") or 0, within_s=60)).kill()
            else:
                eventually(lambda p=PARTS[part]: hurt.processes(p), within_s=60)[0].kill()
            before = seen["ok"]
            eventually(lambda b=before: seen["ok"] > b + 3 or all(f.done() for f in under_way), within_s=60)
    print(seen)

    def spent() -> int:
        rows = (r for r in hurt.usage("edge") if r["kind"] == "final")
        return sum(r["tokens_input_uncached"] + r["tokens_output"] for r in rows)

    def ask_on() -> tuple[set[str], int]:
        return {ask() for _ in range(4)}, spent()

    # Whatever is left can be spent, as soon as it is known what became of the calls whose gateway was killed.
    eventually(ask_on, lambda now: now[0] == {"budget_exceeded"} and now[1] >= budget * 0.98, within_s=150)
    assert budget * 0.98 <= spent() <= budget
