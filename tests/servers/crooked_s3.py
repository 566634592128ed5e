"""An S3 store that misbehaves on demand: moto behind a proxy that strips headers, loses answers or refuses."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest

from tests.servers.seaweedfs import ACCESS_KEY, SECRET_KEY


class CrookedS3:
    """What the proxy does to the requests that come next; a test sets it."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.endpoint = ""
        # Take away If-None-Match, as a store does that does not know it.
        self.ignore_conditions = False
        # So many PUTs are carried out and their answers lost.
        self.lose_answers = 0
        # So many requests are answered with this status and code and not carried out.
        self.refuse = 0
        self.refusal = (503, "SlowDown")
        self.lock = threading.Lock()

    def take(self, name: str) -> bool:
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    crooked: CrookedS3

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.crooked.take("refuse"):
            status, code = self.crooked.refusal
            self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        if self.crooked.ignore_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        upstream = http.client.HTTPConnection(*self.crooked.upstream, timeout=10)
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if self.command == "PUT" and self.crooked.take("lose_answers"):
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward  # noqa: N815  # the names that http.server calls

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running_crooked_s3(upstream: tuple[str, int]) -> Iterator[CrookedS3]:
    """Run the proxy before `upstream` on a free port of loopback."""
    crooked = CrookedS3(upstream)
    handler = type("Handler", (_Handler,), {"crooked": crooked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    crooked.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield crooked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[tuple[str, int]]:
    """moto's S3 with an empty bucket `lake`, on a free port of loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="lake")
    client.close()
    yield host, port
    server.stop()


@pytest.fixture
def crooked_s3(moto_server: tuple[str, int]) -> Iterator[CrookedS3]:
    """A proxy before moto that a test can make misbehave."""
    with running_crooked_s3(moto_server) as crooked:
        yield crooked
