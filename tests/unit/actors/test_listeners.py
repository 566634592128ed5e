"""Who could reach a listener."""

from __future__ import annotations

import pytest

from actors.listeners import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost"])
def test_this_machine_alone(host: str) -> None:
    """Loopback in every spelling."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "::ffff:10.1.2.3", "example.org", "", "localhost.example"])
def test_others_could(host: str) -> None:
    """Everything else counts as reachable, names and nonsense too."""
    assert not is_loopback(host)
