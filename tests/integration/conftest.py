"""One cluster for all tests of this folder; those that hurt a cluster start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RUN_FOLDER
from tests.servers.cluster import RunningCluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RunningCluster]:
    """A ready cluster with room for many small agents."""
    with running_cluster(RUN_FOLDER / "home", num_cpus=16, queue_limit=64) as running:
        yield running
