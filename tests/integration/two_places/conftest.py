"""One cluster for the tests here: two agents have room, and it sends its traces to a collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.cluster import RunningCluster, running_cluster
from tests.servers.otlp_sink import Collector, otlp_sink


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """What the cluster's traces go to."""
    with otlp_sink() as seen:
        yield seen


@pytest.fixture(scope="package")
def crowd(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster with room for two agents of a whole CPU, which never give their process back by themselves."""
    home = tmp_path_factory.mktemp("crowd") / "home"
    with running_cluster(home, num_cpus=2, warm_pool=1, otlp_endpoint=collector.endpoint) as running:
        yield running
