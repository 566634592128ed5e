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
        self._port = 0
        self._listening: tuple[ThreadingHTTPServer, threading.Thread] | None = None
        # Take away If-None-Match, as a store does that does not know it.
        self.ignore_conditions = False
        # So many PUTs are carried out and their answers lost.
        self.lose_answers = 0
        # So many PUTs are carried out and their answers end after a few bytes.
        self.tear_answers = 0
        # So many PUTs reach the store with half of their bytes, and then their connection breaks.
        self.cut_bodies = 0
        # While it is set requests wait at the door; then they are carried out, however long their sender has been gone.
        self.may_enter = threading.Event()
        self.may_enter.set()
        # So many requests are answered with this status and code and not carried out.
        self.refuse = 0
        self.refusal = (503, "SlowDown")
        # The Retry-After of refusals; none when it is empty.
        self.retry_after = ""
        # Connections that were kept alive break with the next request, as those to a host do that is gone.
        self.away = False
        self.lock = threading.Lock()

    def listen(self) -> None:
        """Open the port: a free one at first, the same one ever after."""
        handler = type("Handler", (_Handler,), {"crooked": self})
        server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = server.server_address[1]
        self.away = False
        self.endpoint = f"http://127.0.0.1:{self._port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self._listening = (server, thread)

    def go_away(self) -> None:
        """Close the port: connections are refused until `listen`."""
        self.away = True
        if self._listening is not None:
            server, thread = self._listening
            self._listening = None
            server.shutdown()
            server.server_close()
            thread.join()

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
        if self.crooked.away:
            self.close_connection = True
            return
        self.crooked.may_enter.wait()
        if self.crooked.take("refuse"):
            status, code = self.crooked.refusal
            asked = {"Retry-After": self.crooked.retry_after} if self.crooked.retry_after else {}
            self._answer(status, {"Content-Type": "application/xml"} | asked, f"<Error><Code>{code}</Code></Error>".encode())
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        if self.command == "PUT" and self.crooked.take("cut_bodies"):
            self._cut(headers, body)
            return
        if self.crooked.ignore_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        upstream = http.client.HTTPConnection(*self.crooked.upstream, timeout=10)
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if self.command == "PUT" and self.crooked.take("tear_answers"):
            self.wfile.write(b"HTTP/1.1 20")
            self.close_connection = True
            return
        if self.command == "PUT" and self.crooked.take("lose_answers"):
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):  # who asked may be gone
            self._answer(answer.status, dict(answer.getheaders()), data)

    def _cut(self, headers: dict[str, str], body: bytes) -> None:
        upstream = http.client.HTTPConnection(*self.crooked.upstream, timeout=30)
        upstream.putrequest("PUT", self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body[: len(body) // 2])
        upstream.close()
        self.close_connection = True

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
    crooked.listen()
    try:
        yield crooked
    finally:
        crooked.may_enter.set()
        crooked.go_away()


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
