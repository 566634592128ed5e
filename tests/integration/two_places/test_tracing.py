"""One request is one tree of spans, from the way in to the tool's process, at a real collector."""

from __future__ import annotations

import json
import secrets

import httpx

from tests.servers.cluster import RunningCluster, eventually
from tests.servers.otlp_sink import Collector, Seen

PRIVATE = "a-word-that-nobody-else-says"


def path_to(name: str, spans: list[Seen]) -> list[str]:
    """Return the names from the root to the span of this name, with the process of each."""
    by_id = {span.span_id: span for span in spans}
    at: Seen | None = next(span for span in spans if span.name == name)
    path = []
    while at is not None:
        path.append(f"{at.service.removeprefix('sovereign-')}: {at.name}")
        at = by_id.get(at.parent_id)
    return path[::-1]


def is_whole(spans: list[Seen], names: set[str], above: str = "") -> bool:
    """Whether spans of these names are there and no span's parent is missing: a parent ends, and is sent, after its children."""
    ids = {span.span_id for span in spans} | {above}
    return names <= {span.name for span in spans} and all((span.parent_id or "") in ids for span in spans)


def test_a_call_is_one_tree_down_to_the_tools_process(crowd: RunningCluster, collector: Collector) -> None:
    """Under the client's own span: way in, directory, wake, agent, model, tool, process; the usage row has the trace's id."""
    policy = {"allowed_tools": ["data_analysis"], "resource_limits": {"cpu": "100m", "memory": "512Mi"}}
    crowd.register("watched", security_policy=policy).raise_for_status()
    tool = {"name": "data_analysis", "args": {"rows": [{"x": PRIVATE}], "sql": "select x from data"}}
    text = json.dumps({"script": [{"call_tool": tool}, {"say": f"{PRIVATE} {{tool}}"}]})
    for streams in (False, True):
        trace_id, client = secrets.token_hex(16), secrets.token_hex(8)
        body = {"model": "watched", "messages": [{"role": "user", "content": text}], "stream": streams}
        headers = {"traceparent": f"00-{trace_id}-{client}-01"}
        assert crowd.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        spans = eventually(
            lambda trace_id=trace_id: collector.of(trace_id),
            lambda seen, client=client: is_whole(seen, {"tool_process", "POST /v1/chat/completions"}, client),
        )
        way_in = next(s for s in spans if s.name.startswith("POST"))
        assert way_in.parent_id == client
        assert way_in.attributes["http.response.status_code"] == 200
        assert path_to("tool_process", spans) == [
            "gateway: POST /v1/chat/completions",
            "agent: invoke_agent watched",
            "agent: execute_tool data_analysis",
            "agent: tool_process",
        ]
        assert path_to("chat scripted:steps", spans)[:2] == path_to("tool_process", spans)[:2]
        if not streams:
            assert path_to("start_agent", spans) == [
                "gateway: POST /v1/chat/completions",
                "gateway: resolve_agent",
                "governance: governance resolve",
                "governance: start_agent",
            ]
        agent = next(s for s in spans if s.name == "invoke_agent watched")
        rows = eventually(lambda trace_id=trace_id: [r for r in crowd.usage("watched") if r["trace_id"] == trace_id])
        assert agent.attributes["sovereign.invocation_id"] == rows[0]["invocation_id"]
        assert agent.attributes["gen_ai.usage.output_tokens"] == rows[0]["tokens_output"]
    assert not any(PRIVATE.encode() in body for body in collector.raw)


def test_a_registration_shows_its_decision_and_its_transaction(crowd: RunningCluster, collector: Collector) -> None:
    """Walk 1, in order, below the request; without a client's span the platform begins a trace of its own."""
    crowd.register("registered").raise_for_status()

    def tree() -> list[Seen]:
        roots = [s for s in list(collector.spans) if s.attributes.get("http.route") == "/api/v1/agents"]
        return collector.of(roots[-1].trace_id) if roots else []

    spans = eventually(tree, lambda seen: is_whole(seen, {"decide", "journal", "transact"}))
    above = ["gateway: POST /api/v1/agents", "governance: governance register"]
    for name in ("decide", "journal", "transact"):
        assert path_to(name, spans) == [*above, f"governance: {name}"]


def test_what_fails_is_marked_by_its_kind_alone(crowd: RunningCluster, collector: Collector) -> None:
    """A model that fails marks the spans above it; nothing that it said is in them."""
    crowd.register("failing").raise_for_status()
    trace_id = secrets.token_hex(16)
    body = {"model": "failing", "messages": [{"role": "user", "content": json.dumps({"script": [{"fail": PRIVATE}]})}]}
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    assert crowd.http.post("/v1/chat/completions", json=body, headers=headers).status_code >= 500
    failed = {"POST /v1/chat/completions", "invoke_agent failing", "chat scripted:steps"}
    eventually(lambda: {s.name for s in collector.of(trace_id) if s.failed}, lambda names: failed <= names)
    assert not any(PRIVATE.encode() in body for body in collector.raw)


def test_segments_are_traced_on_their_way_to_the_lake(collector: Collector) -> None:
    """Each object that is stored is a span of the shipper, with how many rows it holds."""
    stored = eventually(lambda: [s for s in list(collector.spans) if s.name == "put_segment"])
    assert {s.service for s in stored} == {"sovereign-shipper"}
    assert all(s.attributes["sovereign.rows"] > 0 for s in stored)


def test_a_metric_leads_to_a_trace_and_that_to_a_row(crowd: RunningCluster, collector: Collector) -> None:
    """OpenMetrics names the trace of a call beside the bucket that it is in; the collector has it, and so has the lake."""
    crowd.register("measured").raise_for_status()
    assert crowd.ask("measured").status_code == 200
    (row,) = eventually(lambda: crowd.usage("measured"))

    def page() -> str:
        accept = {"accept": "application/openmetrics-text"}
        return httpx.get(crowd.state.metrics_url, headers=accept, timeout=10).text

    text = eventually(page, lambda text: f'trace_id="{row["trace_id"]}"' in text)
    assert text.endswith("# EOF\n")
    invocations = {span.attributes.get("sovereign.invocation_id") for span in collector.of(row["trace_id"])}
    assert row["invocation_id"] in invocations
