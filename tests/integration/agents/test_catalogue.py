"""The granted tools in a real agent and real children: from the model's call to the result that it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.agents.brain import Brain
from cluster.agents.bubblewrap_sandbox import probe
from cluster.agents.call import Call, CallMeter
from cluster.agents.catalogue import CATALOGUE, MAX_RESULT_CHARS, ToolSettings, build_tools
from cluster.agents.models import build_model
from cluster.agents.process_sandbox import ProcessSandbox
from cluster.agents.sandbox import Sandbox, ToolLimits
from cluster.errors import ConfigurationError
from cluster.settings import Settings
from cluster.wiring import open_sandbox


@pytest.fixture
def sandbox() -> Sandbox:
    return ProcessSandbox() if probe() else open_sandbox("bubblewrap")


async def call(sandbox: Sandbox, tool: str, arguments: dict[str, Any], meter: CallMeter | None = None, **options: Any) -> str:
    """Return what the model reads after it called `tool`."""
    brain = Brain(
        build_model("scripted:steps"),
        build_tools([tool], sandbox=sandbox, **options),
        instructions="",
        max_iterations=3,
        model_name="scripted:steps",
    )
    script = {"script": [{"call_tool": {"name": tool, "args": arguments}}, {"say": "{tool}"}]}
    return await brain.run(Call("i", [{"role": "user", "content": json.dumps(script)}]), meter or CallMeter())


async def test_data_analysis_in_a_child_is_metered(sandbox: Sandbox) -> None:
    """The exact result comes back to the model, and the child's CPU is on the call's meter."""
    meter = CallMeter()
    got = await call(sandbox, "data_analysis", {"csv": "a,b\n1,2\n3,4\n", "sql": "SELECT sum(a), sum(b) FROM data"}, meter)
    assert json.loads(got)["rows"] == [[4, 6]]
    assert meter.tool_calls == 1
    assert meter.child_cpu_us > 1_000


async def test_report_generation_in_a_child(sandbox: Sandbox) -> None:
    """Nested sections and tables reach the child as they are."""
    sections = [{"heading": "H", "bullets": ["b"], "table": {"columns": ["c"], "rows": [["v"], [2]]}}]
    got = json.loads(await call(sandbox, "report_generation", {"title": "T", "sections": sections}))
    assert got["markdown"] == "# T\n\n## H\n\n- b\n\n| c |\n| --- |\n| v |\n| 2 |\n"


async def test_web_search_in_a_corpus(sandbox: Sandbox, tmp_path: Path) -> None:
    """The operator's folder is searched, read-only, inside the child."""
    (tmp_path / "tea.md").write_text("# Tea\n\nThe price of tea.")
    got = json.loads(await call(sandbox, "web_search", {"query": "tea"}, settings=ToolSettings(search_corpus=tmp_path)))
    assert got == {"source": "corpus", "results": [{"title": "Tea", "path": "tea.md", "snippet": "# Tea The price of tea."}]}


async def test_web_search_finds_something_where_nothing_is_set(sandbox: Sandbox) -> None:
    """The documentation that lies beside the code is the corpus until the operator names another."""
    settings = ToolSettings(search_corpus=Settings.load().search_corpus)
    got = json.loads(await call(sandbox, "web_search", {"query": "threat model bubblewrap"}, settings=settings))
    assert "threat-model.md" in [result["path"] for result in got["results"]]


async def test_web_search_that_is_not_set_up_says_how(sandbox: Sandbox, tmp_path: Path) -> None:
    """Without an endpoint and a folder, the error names both settings; a folder that is gone is named."""
    got = await call(sandbox, "web_search", {"query": "tea"})
    assert "SOVEREIGN_SEARCH_URL" in got
    assert "SOVEREIGN_SEARCH_CORPUS" in got
    got = await call(sandbox, "web_search", {"query": "tea"}, settings=ToolSettings(search_corpus=tmp_path / "gone"))
    assert "gone" in got


@pytest.fixture
async def endpoint() -> AsyncIterator[tuple[str, list[str]]]:
    """A SearXNG-compatible search on loopback, and what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split()[1])
        body = json.dumps({"results": [{"title": "T", "url": "https://x.example/", "content": "C"}] * 9}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/search", asked
    server.close()


async def test_web_search_through_the_operators_endpoint(sandbox: Sandbox, endpoint: tuple[str, list[str]]) -> None:
    """The child asks its host, which asks the operator's endpoint alone; the model cannot name another."""
    url, asked = endpoint
    settings = ToolSettings(search_url=url)
    got = json.loads(await call(sandbox, "web_search", {"query": "tea & cake", "max_results": 2}, settings=settings))
    assert got == {"source": "web", "results": [{"title": "T", "url": "https://x.example/", "snippet": "C"}] * 2}
    assert asked == ["/search?q=tea+%26+cake&format=json"]
    got = await call(sandbox, "web_search", {"query": "tea", "search_url": "http://127.0.0.1:1/"}, settings=settings)
    assert "search_url" in got
    assert len(asked) == 1


async def test_a_tool_beyond_its_memory_is_an_error_and_the_agent_goes_on(sandbox: Sandbox) -> None:
    """Control: RLIMIT_AS in child._confine. The call fails alone and the model can answer."""
    limits = ToolLimits(memory_bytes=64 << 20)
    sql = "SELECT length(printf('%.*c', 200000000, 'x')) FROM data"
    got = await call(sandbox, "data_analysis", {"csv": "a\n1\n", "sql": sql}, limits=limits)
    assert "memory" in got


async def test_an_endless_query_ends_at_the_cpu_limit(sandbox: Sandbox) -> None:
    """Control: RLIMIT_CPU in child._confine. SQL that never ends is stopped and billed."""
    meter = CallMeter()
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    got = await call(sandbox, "data_analysis", {"csv": "a\n1\n", "sql": sql}, meter, limits=ToolLimits(cpu_s=1))
    assert "limit of 1 s of CPU" in got
    assert meter.child_cpu_us > 500_000


async def test_a_long_result_is_cut(sandbox: Sandbox) -> None:
    """What the model has to read is bounded."""
    rows = [{"text": "x" * 500} for _ in range(400)]
    got = await call(sandbox, "data_analysis", {"rows": rows, "sql": "SELECT text FROM data"})
    assert len(got) < MAX_RESULT_CHARS + 100
    assert got.endswith("… (cut: ask for less)")


@pytest.mark.parametrize("name", ["shell", "Web_Search", "web_search ", "../child", "child"])
def test_a_tool_that_is_not_in_the_catalogue_is_refused(sandbox: Sandbox, name: str) -> None:
    """Names are taken letter by letter."""
    with pytest.raises(ConfigurationError, match="There is no tool"):
        build_tools([name], sandbox=sandbox)


def test_the_catalogue_is_complete(sandbox: Sandbox) -> None:
    """Every tool has a module for the child, a description and a schema that refuses unknown arguments."""
    tools = build_tools(list(CATALOGUE), sandbox=sandbox)
    assert [t.name for t in tools] == ["web_search", "data_analysis", "report_generation"]
    for tool in tools:
        assert len(tool.description) > 60
        assert tool.args_schema.model_json_schema()["additionalProperties"] is False  # type: ignore[union-attr]  # a pydantic model
