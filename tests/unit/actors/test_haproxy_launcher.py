"""The configuration that Serve writes for HAProxy is tightened before HAProxy sees it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from actors.haproxy_launcher import tighten

CONFIG = """global
    stats socket /x/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    option splice-request
    option splice-response
frontend prometheus
    bind :9101
frontend stats
    bind *:8404
frontend http_frontend
    bind 127.0.0.1:8080
"""


def test_every_bind_is_on_the_host_asked_for() -> None:
    """Wildcard binds, with and without a star, move to the host; others stay."""
    tight = tighten(CONFIG, "127.0.0.1")
    binds = [line.split()[1] for line in tight.splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8404", "127.0.0.1:8080"]


def test_the_admin_socket_is_private_and_slow_clients_have_bounds() -> None:
    """Nobody else may open the admin socket, and a client that does not finish its request is cut off."""
    tight = tighten(CONFIG, "127.0.0.1")
    assert "mode 600" in tight
    assert "mode 666" not in tight
    assert "timeout http-request" in tight


def test_requests_are_not_spliced() -> None:
    """With spliced requests HAProxy does not pass a client's going away on; responses may be spliced."""
    tight = tighten(CONFIG, "127.0.0.1")
    assert "splice-request" not in tight
    assert "option splice-response" in tight


def test_the_template_of_this_serve_has_the_lines_that_are_rewritten() -> None:
    """When Serve's template changes, this says so before a listener is found open at start."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    template = Path(spec.origin).parent.joinpath("serve", "_private", "haproxy_templates.py").read_text()
    assert "bind :{{ config.metrics_port }}" in template
    assert "mode 666" in template
    assert "\ndefaults\n    mode http\n" in template
    assert "\n    option splice-request\n" in template
