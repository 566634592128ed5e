"""Gateways come with the crowd and go after it, down to none; no call is lost by that."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.servers.cluster import RunningCluster, eventually, running_cluster
from tests.sizes import soak

AGENT = "asked"


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster with none to three gateways, of four calls each."""
    gateways = {
        f"gateway_{k}": v for k, v in {"min_replicas": 0, "max_replicas": 3, "target_queue": 4, "down_delay_s": 1}.items()
    }
    home = tmp_path_factory.mktemp("scaled") / "home"
    with running_cluster(home, num_cpus=4, warm_pool=1, queue_limit=8, **gateways) as running:
        running.register(AGENT)
        yield running


def gateways(cluster: RunningCluster) -> int:
    return len(cluster.processes("ServeReplica:sovereign"))


class Crowd:
    """Clients that ask without pause; what each was answered is kept."""

    def __init__(self, cluster: RunningCluster, clients: int) -> None:
        self._cluster = cluster
        self._enough = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.answered: set[str] = set()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        text = json.dumps({"script": [{"sleep_s": 0.5}, {"say": "done"}]})
        while not self._enough.is_set():
            answer = self._cluster.ask(AGENT, text)
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                self.answered.add(answer.json()["id"].removeprefix("chatcmpl-"))
            else:
                assert int(answer.headers["retry-after"]) >= 1, answer.text
                self._enough.wait(0.1)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()


def test_gateways_follow_the_crowd_down_to_none_and_back(scaled: RunningCluster) -> None:
    """A crowd gets more gateways; what is too much meanwhile is told to come back; the first call after a lull is answered."""
    answered: set[str] = set()
    for _ in range(soak(1, 5)):
        with Crowd(scaled, 12) as crowd:
            eventually(lambda: gateways(scaled), lambda n: n >= 3, within_s=60)
        answered |= crowd.answered
        assert set(crowd.statuses) <= {200, 429}
        assert crowd.statuses[200] >= 12
        eventually(lambda: gateways(scaled), lambda n: n == 0, within_s=60)
        woken = scaled.ask(AGENT)
        assert woken.status_code == 200, woken.text
        answered.add(woken.json()["id"].removeprefix("chatcmpl-"))
    rows = eventually(
        lambda: [r["invocation_id"] for r in scaled.usage(AGENT) if r["kind"] == "final"], lambda ids: len(ids) >= len(answered)
    )
    assert sorted(rows) == sorted(answered)
