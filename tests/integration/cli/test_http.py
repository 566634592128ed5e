"""The command against a real HTTP server: what a cluster answers becomes a sentence and an exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.run_state import read_state
from cli.exit_codes import exit_code_of
from cli.http import ApiClient
from cluster.errors import (
    AdmissionDeniedError,
    FieldError,
    InternalError,
    OverloadedError,
    SovereignError,
    UnauthenticatedError,
    UnavailableError,
)
from cluster.settings import Settings
from tests.servers.cluster import eventually

DENIED = AdmissionDeniedError("Refused.", hint="Ask for less.", errors=[FieldError("capability.x", "is not held")])
BUSY = {"error": {"message": "full\n  a: b\nwait", "type": "rate_limit_error", "param": "a", "code": "overloaded"}}


class Scripted(BaseHTTPRequestHandler):
    """Answers each path as one kind of cluster would."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer the-key":
            self._answer(401, UnauthenticatedError("Who are you?").to_problem())
        elif self.path == "/denied":
            self._answer(403, DENIED.to_problem())
        elif self.path == "/busy":
            self._answer(429, BUSY)
        elif self.path == "/html":
            self._answer(502, "<html>bad gateway</html>")
        elif self.path == "/drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer(200, {"path": self.path})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        events = [{"choices": [{"delta": {"content": "hé"}}]}]
        lines = [f"data: {json.dumps(e)}\n\n" for e in events]
        lines += {"/whole": ["data: [DONE]\n\n", "data: never\n\n"], "/fails": [f"data: {json.dumps(BUSY)}\n\n"]}[self.path]
        body = ": a comment\n\n" + "".join(lines)
        self._answer(200, body, "text/event-stream")

    def _answer(self, status: int, body: Any, media: str = "application/problem+json") -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    settings = Settings.load(home=tmp_path)
    settings.secret_dir.mkdir()
    (settings.secret_dir / "api-key").write_text("the-key\n")
    write_state(settings, f"http://127.0.0.1:{server.server_port}")
    yield settings
    server.shutdown()
    thread.join()
    server.server_close()


def write_state(settings: Settings, url: str, *, status: str = "ready", pid: int | None = None) -> None:
    pid = os.getpid() if pid is None else pid
    state = {
        "version": 1,
        "cluster_id": "c",
        "status": status,
        "pid": pid,
        "pid_started": psutil.Process(pid).create_time(),
        "http_url": url,
        "ray_address": "127.0.0.1:1",
        "ports": {},
        "started_at": time.time(),
    }
    settings.state_path.write_text(json.dumps(state))


def refusal_of(settings: Settings, path: str) -> SovereignError:
    with pytest.raises(SovereignError) as refused, ApiClient(settings) as api:
        api.request("GET", path)
    return refused.value


def test_an_answer_is_its_json_and_open_parameters_are_left_out(settings: Settings) -> None:
    """What was not given on the command line is not sent."""
    with ApiClient(settings) as api:
        assert api.request("GET", "/x", params={"after": None, "limit": 5}) == {"path": "/x?limit=5"}


def test_a_problem_comes_back_as_the_error_that_it_was(settings: Settings) -> None:
    """Kind, sentence, every field and the hint arrive; the exit code says refused."""
    error = refusal_of(settings, "/denied")
    assert error.to_problem() == DENIED.to_problem()
    assert exit_code_of(error) == 3


def test_an_error_in_the_shape_of_openai_keeps_its_kind_and_words(settings: Settings) -> None:
    """The words hold the fields and the hint already."""
    error = refusal_of(settings, "/busy")
    assert isinstance(error, OverloadedError)
    assert error.detail == "full\n  a: b\nwait"


def test_a_page_that_is_no_json_is_quoted(settings: Settings) -> None:
    """What stands between the command and the cluster may answer in its own words."""
    error = refusal_of(settings, "/html")
    assert isinstance(error, InternalError)
    assert "502" in error.detail
    assert "bad gateway" in error.detail


def test_a_dropped_connection_says_where_to_look(settings: Settings) -> None:
    """Exit code 5 and the command that shows why."""
    error = refusal_of(settings, "/drop")
    assert isinstance(error, UnavailableError)
    assert "sovereign logs" in error.hint


def test_a_wrong_key_is_told_apart(settings: Settings) -> None:
    """Exit code 6."""
    (settings.secret_dir / "api-key").write_text("other")
    assert exit_code_of(refusal_of(settings, "/x")) == 6
    (settings.secret_dir / "api-key").unlink()
    assert exit_code_of(refusal_of(settings, "/x")) == 6


def test_a_stream_is_its_events_up_to_the_end_mark(settings: Settings) -> None:
    """Comments and what follows [DONE] are nobody's words."""
    with ApiClient(settings) as api, api.events("/whole", {}) as events:
        assert [e["choices"][0]["delta"]["content"] for e in events] == ["hé"]


def test_a_stream_that_fails_midway_raises_after_what_it_said(settings: Settings) -> None:
    """An error that comes as an event is not taken for text."""
    with ApiClient(settings) as api, api.events("/fails", {}) as events:
        assert next(events)["choices"][0]["delta"]["content"] == "hé"
        with pytest.raises(OverloadedError, match="full"):
            next(events)


@pytest.mark.parametrize("status", ["starting", "stopping"])
def test_a_cluster_that_is_not_ready_is_said_to_be_so(settings: Settings, status: str) -> None:
    """A command does not hang on a cluster that is on its way."""
    write_state(settings, "http://127.0.0.1:9", status=status)
    assert status in refusal_of(settings, "/x").detail


def test_the_state_of_a_supervisor_that_died_counts_for_nothing(settings: Settings) -> None:
    """A pid that belongs to someone else by now is not taken for the cluster."""
    document = json.loads(settings.state_path.read_text())
    settings.state_path.write_text(json.dumps(document | {"pid_started": document["pid_started"] - 1000}))
    assert "No cluster runs" in refusal_of(settings, "/x").detail


def test_a_supervisor_that_was_killed_and_that_nobody_waited_for_is_dead(settings: Settings) -> None:
    """Where the machine's first process collects no orphans, a zombie must not pass for a cluster that runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        document = json.loads(settings.state_path.read_text())
        document |= {"pid": child.pid, "pid_started": process.create_time()}
        settings.state_path.write_text(json.dumps(document))
        state = read_state(settings)
        assert state is not None
        assert state.alive
        process.kill()
        eventually(process.status, lambda status: status == psutil.STATUS_ZOMBIE)
        assert not state.alive
