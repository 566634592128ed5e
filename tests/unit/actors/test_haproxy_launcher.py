"""The configuration that Serve writes for HAProxy is tightened before HAProxy sees it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from actors.haproxy_launcher import ERRORS, SERVE_HEADERS, error_page, tighten

_RAY = importlib.util.find_spec("ray")
assert _RAY is not None
assert _RAY.origin is not None
SERVE = Path(_RAY.origin).parent / "serve" / "_private"
CONFIG = """global
    stats socket /x/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 /x/500.http
    errorfile 503 /x/500.http
    option splice-request
    option splice-response
frontend prometheus
    bind :9101
frontend stats
    bind *:8404
frontend http_frontend
    bind 127.0.0.1:8080
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \'%[path]\' not found."
backend another
    http-request return status 404 content-type text/plain string "its own"
"""


def test_every_bind_is_on_the_host_asked_for() -> None:
    """Wildcard binds, with and without a star, move to the host; others stay."""
    tight = tighten(CONFIG, "127.0.0.1", Path("/pages"))
    binds = [line.split()[1] for line in tight.splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8404", "127.0.0.1:8080"]


def test_the_admin_socket_is_private_and_slow_clients_have_bounds() -> None:
    """Nobody else may open the admin socket, and a client that does not finish its request is cut off."""
    tight = tighten(CONFIG, "127.0.0.1", Path("/pages"))
    assert "mode 600" in tight
    assert "mode 666" not in tight
    assert "timeout http-request" in tight


def test_a_gateway_that_is_away_is_told_from_one_that_failed() -> None:
    """Serve says 500 of both; ours says what happened and whether to retry, to OpenAI's clients too."""
    tight = tighten(CONFIG, "127.0.0.1", Path("/pages"))
    assert re.findall(r"errorfile (\d+) (\S+)", tight) == [("502", "/pages/502.http"), ("503", "/pages/503.http")]
    for status in ERRORS:
        head, _, body = error_page(status).decode().partition("\r\n\r\n")
        problem = json.loads(body)
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert f"content-length: {len(body)}" in head
        assert problem["status"] == status
        assert problem["error"]["code"] == problem["code"]
        assert ("retry-after: 1" in head) == (status == 503)


def test_a_gateway_that_is_yet_to_come_is_away_and_not_unknown() -> None:
    """Until Serve knows the gateway no path has a backend; the one for such has no server then, so it says 503 and not 404."""
    tight = tighten(CONFIG, "127.0.0.1", Path("/pages"))
    assert tight.endswith("backend default_backend\nbackend another\n" + CONFIG.splitlines()[-1] + "\n")


def test_requests_are_not_spliced() -> None:
    """With spliced requests HAProxy does not pass a client's going away on; responses may be spliced."""
    tight = tighten(CONFIG, "127.0.0.1", Path("/pages"))
    assert "splice-request" not in tight
    assert "option splice-response" in tight


def test_headers_are_cleaned_before_serve_sees_them() -> None:
    """The way in drops what would steer Serve and a request id that is none; other listeners stay as they are."""
    sections = tighten(CONFIG, "127.0.0.1", Path("/pages")).split("frontend ")
    assert [section.count("http-request del-header") for section in sections] == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("x-request-timeout-seconds", True),
        ("x-request-disconnect-disabled", True),
        ("x-session-id", True),
        ("x_session_id", True),
        ("serve_multiplexed_model_id", True),
        ("serve-multiplexed-model-id", True),
        ("serve_multiplexed-model_id", True),
        ("x-request-id", False),
        ("x-deadline-s", False),
        ("authorization", False),
        ("my-x-session-id", False),
        ("x-session-id-2", False),
    ],
)
def test_the_headers_that_steer_serve_are_dropped_whole_and_no_others(name: str, dropped: bool) -> None:
    """Serve reads them with - and with _; what only contains such a name is the client's own."""
    assert bool(re.search(SERVE_HEADERS, name)) == dropped


def test_the_headers_that_this_serve_obeys_are_known() -> None:
    """When a new Serve learns a header, this says so before a client uses it."""
    constants = SERVE.joinpath("constants.py").read_text()
    obeyed = re.findall(r'^SERVE_HTTP_\w*HEADER\w* = "(.+)"', constants, flags=re.M)
    obeyed += re.findall(r'^SERVE_(?:MULTIPLEXED_MODEL_ID|SESSION_ID)\b.*"(\S+)"\)?$', constants, flags=re.M)
    assert len(obeyed) == 5
    assert [name for name in obeyed if not re.search(SERVE_HEADERS, name)] == ["x-request-id"]
    for reader in ("replica.py", "http_util.py"):
        assert set(re.findall(r"\bSERVE_HTTP_\w*HEADER\b", SERVE.joinpath(reader).read_text())) <= {
            "SERVE_HTTP_REQUEST_ID_HEADER",
            "SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER",
            "SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER",
        }


def test_the_template_of_this_serve_has_the_lines_that_are_rewritten() -> None:
    """When Serve's template changes, this says so before a listener is found open at start."""
    template = SERVE.joinpath("haproxy_templates.py").read_text()
    assert "bind :{{ config.metrics_port }}" in template
    assert "mode 666" in template
    assert "\ndefaults\n    mode http\n" in template
    assert "\n    option splice-request\n" in template
    assert [f"\n    errorfile {status} " in template for status in ERRORS] == [True, True, True]
    assert "\nbackend default_backend\n    http-request return status 404 content-type text/plain " in template
    assert "\nfrontend http_frontend\n    bind " in template
