"""Tracing that is off costs nothing and changes nothing; a sink that is away stops nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextvars import ContextVar

import pytest

from cluster.settings import PROJECT_ROOT
from cluster.telemetry import tracing

OFF = """
import sys
from cluster.settings import Settings
from cluster.telemetry import tracing
tracing.configure_tracing("gateway", Settings.load())
with tracing.span("x", parent="00-" + "1" * 32 + "-" + "2" * 16 + "-01", attributes={"a": 1}) as span:
    span.set({"b": 2})
    assert tracing.traceparent() == span.trace_id == ""
tracing.flush()
assert not [name for name in sys.modules if name.startswith("opentelemetry")], "imported for nothing"
"""
AWAY = """
import logging
from cluster.settings import Settings
from cluster.telemetry import tracing
lost = []
logging.basicConfig(format="%(message)s")
tracing.configure_tracing("gateway", Settings.load(otlp_endpoint="http://127.0.0.1:9"), lost.append)
for _ in range(2):
    with tracing.span("x") as span:
        assert len(span.trace_id) == 32
    tracing._Tracing.provider.force_flush(20_000)
assert lost == [1, 1], lost
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_without_a_sink_nothing_of_opentelemetry_is_imported() -> None:
    """A span is then one object for all, that takes what it is told and has no id."""
    done = run(OFF)
    assert done.returncode == 0, done.stderr


def test_a_sink_that_is_away_is_said_once_and_its_spans_are_counted() -> None:
    """Work goes on; the log has one line and no traceback."""
    done = run(AWAY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["traces are lost: nobody takes them at http://127.0.0.1:9"]


def test_without_a_sink_an_error_passes() -> None:
    """The context swallows nothing."""
    with pytest.raises(ValueError, match="as it was"), tracing.span("x"):
        raise ValueError("as it was")


async def test_without_a_sink_a_thread_gets_the_function_itself() -> None:
    """There is no span to carry along."""
    here: ContextVar[int] = ContextVar("here", default=0)
    here.set(1)
    assert await asyncio.get_running_loop().run_in_executor(None, tracing.in_this_trace(here.get)) == 0
