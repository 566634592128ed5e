"""One cluster for the tests here: two agents have room, idle ones give it back, and little may wait to be shipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.cluster import RunningCluster, running_cluster


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster with room for two agents, which gives up idle ones after a second and closes at 24 kB of unshipped facts."""
    home = tmp_path_factory.mktemp("small") / "home"
    with running_cluster(home, num_cpus=2, warm_pool=1, idle_s=1.0, journal_limit_bytes=24_000) as running:
        yield running
