"""What a node measures, at one address that Prometheus reads."""

from __future__ import annotations

import json
import re

import httpx

from cluster.telemetry.metrics import Stage
from tests.servers.cluster import RunningCluster, eventually


def test_metrics_of_the_node_are_merged_in_one_place(cluster: RunningCluster) -> None:
    """One /metrics has the calls that agents counted, each stage, and what the shipper counted; no agent id is a label."""
    policy = {"allowed_tools": ["data_analysis"], "resource_limits": {"cpu": "100m", "memory": "512Mi"}}
    cluster.register("counted", security_policy=policy)
    tool = {"name": "data_analysis", "args": {"rows": [{"x": 1}], "sql": "select x from data"}}
    steps = json.dumps({"script": [{"call_tool": tool}, {"say": "{tool}"}]})
    assert cluster.ask("counted", steps, stream=True).status_code == 200
    assert cluster.ask("counted", steps).status_code == 200
    url = f"http://{cluster.settings.host}:{cluster.state.ports['node_metrics']}/metrics"
    text = eventually(
        lambda: httpx.get(url, timeout=10).text,
        lambda t: "sovereign_calls_total{" in t and "sovereign_shipped_rows_total" in t and not unmeasured(t),
    )
    assert 'tenant="default"' in text
    assert "counted" not in text


def unmeasured(text: str) -> set[str]:
    """Return the stages of a call that nothing was counted for."""
    counted = re.findall(r'^sovereign_stage_seconds_count\{[^}]*stage="(\w+)"[^}]*\} (?!0\.0)', text, re.MULTILINE)
    return set(Stage) - set(counted)
