"""A unit test decides and computes: it may connect to nothing, listen nowhere, and not start Ray."""

from __future__ import annotations

import sys
from typing import Any

import pytest

_running = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _running:
        return
    if event in ("socket.connect", "socket.bind"):
        raise AssertionError(f"a unit test may use no socket, and this one wants {event} {arguments[1]!r}")
    if event == "subprocess.Popen" and "gcs_server" in str(arguments[0]):
        raise AssertionError("a unit test may not start Ray")


sys.addaudithook(_refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    global _running
    _running = True
    try:
        return (yield)
    finally:
        _running = False
