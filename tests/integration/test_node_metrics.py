"""What a node measures, at one address that Prometheus reads."""

from __future__ import annotations

import httpx

from tests.servers.cluster import RunningCluster, eventually


def test_metrics_of_the_node_are_merged_in_one_place(cluster: RunningCluster) -> None:
    """One /metrics has the calls that agents counted and the rows that the shipper counted; no agent id is a label."""
    cluster.register("counted", model="scripted:ok")
    cluster.ask("counted")
    url = f"http://{cluster.settings.host}:{cluster.state.ports['node_metrics']}/metrics"
    text = eventually(
        lambda: httpx.get(url, timeout=10).text, lambda t: "sovereign_calls_total{" in t and "sovereign_shipped_rows_total" in t
    )
    assert 'tenant="default"' in text
    assert "counted" not in text
