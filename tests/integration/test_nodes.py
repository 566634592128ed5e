"""Three nodes on one machine, from `ray-cluster.yaml`: placement, a shipper on each, a node drained, a node killed under load."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from actors.marked import marked
from actors.run_state import read_node_state
from cluster import wiring
from cluster.coordination.journals import journal_node
from cluster.journal.journal_id import list_journals
from tests.servers.cluster import RunningCluster, eventually
from tests.servers.three_nodes import launcher_file, three_nodes
from tests.sizes import SOAK

# Each of two clients calls each of them without pause while the node that has them is killed.
VICTIMS = ["victim-a", "victim-b"]


@dataclass
class Nodes:
    """A head, and two nodes that joined it: `a` with the labels pool=joined and zone=a, `b` with pool=joined and zone=b."""

    cluster: RunningCluster
    a: str
    b: str

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return the nodes by name."""
        return {node["name"]: node for node in command(self.cluster, "nodes", "list")["nodes"]}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The three of them, ready."""
    labels = ("pool=joined,zone=a", "pool=joined,zone=b")
    with three_nodes(tmp_path_factory.mktemp("nodes"), labels, num_cpus=4, warm_pool=0) as cluster:
        found = command(cluster, "nodes", "list")["nodes"]
        assert [(n["state"], n["head"]) for n in found] == [("ready", True), ("ready", False), ("ready", False)]
        by_zone = {n["labels"].get("zone", ""): n["name"] for n in found}
        yield Nodes(cluster, by_zone["a"], by_zone["b"])


def command(cluster: RunningCluster, *words: str) -> Any:
    """Return what the product's own command says, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words, "--json"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def journal_folder(cluster: RunningCluster, agent: str) -> str:
    """Return the node in whose folder the agent's last generation writes; empty for the head's."""
    found = {}
    for name in ("", *(path.name for path in cluster.settings.nodes_dir.iterdir())):
        for journal in list_journals(cluster.settings.of_node(name).journal_dir):
            if journal.writer_id == f"agent.default.{agent}":
                found[journal.epoch] = name
    return found[max(found)]


def test_each_node_ships_the_journals_of_what_runs_there(nodes: Nodes) -> None:
    """An agent is on a node that has the labels it asks for, its journal is that node's, and its rows are that shipper's.

    Controls: cluster/agents/placement.py selector, cluster/settings.py Settings.of_this_node, cluster/admission/activator.py
    Activator.mark_live (where the journal is).
    """
    cluster = nodes.cluster
    for zone, node in (("a", nodes.a), ("b", nodes.b)):
        agent = f"in-{zone}"
        assert cluster.register(agent, model="scripted:ok", cpu="100m", node_labels={"zone": zone}).status_code == 201
        assert cluster.ask(agent).status_code == 200
        assert journal_folder(cluster, agent) == node
        store = wiring.open_coordination(cluster.settings)
        eventually(lambda a=agent, s=store: journal_node(s, f"agent.default.{a}", 1), lambda found, n=node: found == n)
        store.close()
        eventually(lambda a=agent: cluster.usage(a))
        lake = cluster.settings.home / "lake" / "usage" / "raw" / "v1"
        assert list(lake.rglob(f"writer=shipper.{node}/*.parquet"))


def test_no_process_is_waited_for_that_no_node_can_hold(nodes: Nodes) -> None:
    """What no known node could hold is not admitted; what only a drained one could is said at once, with Retry-After.

    Controls: cluster/admission/prerequisites.py failed_prerequisites, cluster/agents/placement.py require_node.
    """
    cluster = nodes.cluster
    unknown = cluster.register("nowhere", model="scripted:ok", cpu="100m", node_labels={"zone": "x"})
    assert (unknown.status_code, [e["field"] for e in unknown.json()["errors"]]) == (403, ["placement_feasible"])
    command(cluster, "nodes", "drain", nodes.a)
    assert cluster.register("nowhere", model="scripted:ok", cpu="100m", node_labels={"zone": "a"}).status_code == 201
    refused = cluster.ask("nowhere")
    command(cluster, "nodes", "resume", nodes.a)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_node")
    assert int(refused.headers["retry-after"]) > 0


def test_a_full_node_makes_room_though_others_are_empty(nodes: Nodes) -> None:
    """Agents that have nothing to do are ended where the one that is called may be (control: actors/nodes.py have_place)."""
    cluster = nodes.cluster
    # Of different sizes, so that none can take over the process of another.
    for agent, cpu in (("large", "2500m"), ("larger", "2600m")):
        assert cluster.register(agent, model="scripted:ok", cpu=cpu, node_labels={"zone": "a"}).status_code == 201
        assert cluster.ask(agent).status_code == 200
        assert journal_folder(cluster, agent) == nodes.a
    for agent in ("large", "larger"):
        assert cluster.http.delete(f"/api/v1/agents/{agent}").status_code == 200


def test_a_drained_nodes_agents_wake_elsewhere(nodes: Nodes) -> None:
    """A drain ends the node's agents and ships what they wrote; nothing new is placed there until it is resumed.

    Controls: actors/agent_processes.py AgentProcesses.end_on, cluster/admission/cordons.py Cordons.put.
    """
    cluster = nodes.cluster
    # Each takes more than half of a node, so that one of the three is on `a`, whichever Ray fills first; each is of another
    # size, so that none takes over the process of another.
    movers = {"mover-1": "2500m", "mover-2": "2510m", "mover-3": "2520m"}
    for agent, cpu in movers.items():
        assert cluster.register(agent, model="scripted:ok", cpu=cpu).status_code == 201
        assert cluster.ask(agent).status_code == 200
    (moved,) = [agent for agent in movers if journal_folder(cluster, agent) == nodes.a]
    done = command(cluster, "nodes", "drain", nodes.a)
    assert (done["ended"] >= 1, done["shipped"]) == (True, True)
    assert {k: nodes.listed()[nodes.a][k] for k in ("state", "agents")} == {"state": "drained", "agents": 0}
    (other, last) = [agent for agent in movers if agent != moved]
    assert cluster.http.delete(f"/api/v1/agents/{other}").status_code == 200
    assert cluster.ask(moved).status_code == 200
    assert journal_folder(cluster, moved) != nodes.a
    command(cluster, "nodes", "resume", nodes.a)
    assert eventually(lambda: cluster.audit(action="cluster:node:drain", object_id=nodes.a, outcome="done"))
    for agent in (moved, last):
        assert cluster.http.delete(f"/api/v1/agents/{agent}").status_code == 200


class Load:
    """Clients that call the victims without pause and keep the id of every call that was answered."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.by_agent: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(agent,)) for agent in VICTIMS for _ in range(2)]

    def _run(self, agent: str) -> None:
        body = {"model": agent, "messages": [{"role": "user", "content": agent}]}
        with httpx.Client(base_url=self._cluster.state.http_url, headers=self._cluster.headers, timeout=60) as http:
            while not self._stop.is_set():
                answer = http.post("/v1/chat/completions", json=body)
                with self._lock:
                    if answer.status_code == 200:
                        self.answered[answer.json()["id"].removeprefix("chatcmpl-")] += 1
                        self.by_agent[agent] += 1
                    else:
                        assert answer.status_code == 503, answer.text

    def await_answers(self) -> None:
        """Wait until each victim has answered again."""
        before = self.by_agent.copy()
        eventually(lambda: [a for a in VICTIMS if self.by_agent[a] < before[a] + 5], lambda behind: not behind, within_s=150)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.skipif(not SOAK, reason="by design: in the soak run alone, for it takes as long as the rest of this file")
@pytest.mark.parametrize("part", ["raylet", "head"])
def test_a_node_joins_again_by_itself(nodes: Nodes, part: str) -> None:
    """After the end of its own raylet, and after that of the whole head, which takes it along.

    Control: actors/joined_node.py _Supervisor._start_again.
    """
    cluster = nodes.cluster
    cluster.register("back", model="scripted:ok", cpu="100m", node_labels={"zone": "a"})
    assert cluster.ask("back").status_code == 200
    state = read_node_state(cluster.settings.of_node(nodes.a))
    assert state is not None
    processes = marked(cluster.state.cluster_id, nodes.a) if part == "raylet" else marked(cluster.state.cluster_id)
    for process in [p for p in processes if part == "head" or p.name() == "raylet"]:
        with contextlib.suppress(psutil.Error):
            process.kill()

    def status() -> tuple[int, str]:
        now = read_node_state(cluster.settings.of_node(nodes.a))
        return (now.pid, now.status) if now else (0, "")

    def answered() -> bool:
        try:
            return cluster.ask("back").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(status, lambda seen: seen == (state.pid, "starting"))
    eventually(status, lambda seen: seen == (state.pid, "ready"), within_s=150)
    eventually(answered, within_s=60)


def test_a_node_killed_under_load_loses_no_acknowledged_call(nodes: Nodes) -> None:
    """kill -9 of a node's every process: its agents wake elsewhere, and each acknowledged call is in the lake exactly once.

    What it had not shipped is shipped from the head, out of its own folder. Controls: actors/orphaned_journals.py
    OrphanedJournals.step, actors/lives.py Lives.lost.
    """
    cluster = nodes.cluster
    dying = cluster.settings.of_node(nodes.b)
    assert cluster.register("hung", cpu="100m", node_labels={"zone": "b"}).status_code == 201
    assert cluster.ask("hung", json.dumps({"script": [{"say": "awake"}]})).status_code == 200
    # Onto the node that is killed: while the other that they may be on takes none.
    command(cluster, "nodes", "drain", nodes.a)
    for agent in VICTIMS:
        more = {"model": "scripted:ok", "cpu": "100m", "node_labels": {"pool": "joined"}}
        assert cluster.register(agent, **more).status_code == 201
        assert cluster.ask(agent).status_code == 200
        assert journal_folder(cluster, agent) == nodes.b
    command(cluster, "nodes", "resume", nodes.a)

    def written() -> int:
        return sum(f.stat().st_size for f in (dying.journal_dir / "agent.default.hung").rglob("*.seg"))

    size, hung = written(), list[httpx.Response]()
    text = json.dumps({"script": [{"sleep_s": 300}, {"say": "never"}]})
    caller = threading.Thread(target=lambda: hung.append(cluster.ask("hung", text)))
    caller.start()
    eventually(written, lambda now: now > size)  # it was admitted
    with Load(cluster) as load:
        load.await_answers()
        kill_node(cluster, nodes.b)
        load.await_answers()
    caller.join(60)
    assert hung[0].status_code == 503
    assert {journal_folder(cluster, agent) for agent in VICTIMS} == {nodes.a}
    eventually(lambda: nodes.listed()[nodes.b]["state"], lambda state: state == "gone")

    def finals() -> Counter[str]:
        rows = [row for agent in VICTIMS for row in cluster.usage(agent)]
        return Counter(row["invocation_id"] for row in rows if row["kind"] == "final")

    counted = eventually(finals, lambda found: load.answered.keys() <= found.keys())
    assert set(counted.values()) == {1}
    # The call under way when its node was killed was not acknowledged: it is recorded as lost, once.
    lost = eventually(lambda: [row for row in cluster.usage("hung") if row["kind"] != "final"])
    assert [row["kind"] for row in lost] == ["lost"]


def kill_node(cluster: RunningCluster, name: str) -> None:
    """kill -9 every process of a node, its supervisor first, so that nothing cleans up."""
    state = read_node_state(cluster.settings.of_node(name))
    assert state is not None
    psutil.Process(state.pid).kill()
    for process in marked(cluster.state.cluster_id, name):
        process.kill()


def test_the_launchers_file_is_what_ray_takes() -> None:
    """It holds to Ray's schema, and Ray's own preparation of a local cluster takes it."""
    import jsonschema
    import ray
    from ray.autoscaler._private.local.config import prepare_local

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    file = launcher_file()
    jsonschema.validate(file, schema)
    prepared, _ = prepare_local(file)
    assert prepared["max_workers"] == len({file["provider"]["head_ip"], *file["provider"]["worker_ips"]}) - 1
