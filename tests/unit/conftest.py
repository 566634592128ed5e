"""A unit test decides and computes: it may connect to nothing, listen nowhere, and not start Ray."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
# The unit tests under way: one, or none while others run.
_RUNNING: list[str] = []


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _RUNNING:
        return
    if event in ("socket.connect", "socket.bind"):
        raise AssertionError(f"a unit test may use no socket, and this one asks for {event} {arguments[1]!r}")
    if event == "subprocess.Popen" and "gcs_server" in str(arguments[0]):
        raise AssertionError("a unit test may not start Ray")


# A hook of the interpreter can't be taken out again; it does nothing outside of these tests.
sys.addaudithook(_refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch from the first fixture to the last; pytest asks this of the tests of other folders too."""
    if _HERE not in item.path.parents:
        return (yield)
    _RUNNING.append(item.nodeid)
    try:
        return (yield)
    finally:
        _RUNNING.pop()
