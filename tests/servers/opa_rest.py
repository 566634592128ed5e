"""OPA's REST API, as far as the product speaks it, over OPA's own engine: no binary of the server comes with a package.

    python -P tests/servers/opa_rest.py FOLDER_OF_BINDINGS     prints its port

What is sent is compiled at once, and refused with 400 as OPA does when it does not compile; a query of `loop` in the path
never answers, for the deadline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import unquote


class _Server:
    def __init__(self) -> None:
        import opa_bindings

        self._opa = opa_bindings
        self.policies: dict[str, str] = {}
        self.data: dict[str, Any] = {}
        self._engine = self._compiled({}, {})
        self.lock = Lock()

    def _compiled(self, policies: dict[str, str], data: dict[str, Any]) -> Any:
        engine = self._opa.OpaEngine()
        for name, text in policies.items():
            engine.add_policy(name, text)
        engine.add_data(data)
        engine.eval_query("1 == 1")
        return engine

    def become(self, policies: dict[str, str], data: dict[str, Any]) -> None:
        engine = self._compiled(policies, data)
        self._engine.close()
        self._engine, self.policies, self.data = engine, policies, data

    def answer(self, path: str, document: Any) -> dict[str, Any]:
        try:
            return {"result": self._engine.eval_document(path, document)}
        except self._opa.OpaUndefinedError:
            return {}

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        try:
            if path == "/v1/policies" and method == "GET":
                return 200, {"result": [{"id": k, "raw": v} for k, v in self.policies.items()]}
            if path.startswith("/v1/policies/"):
                name = unquote(path.removeprefix("/v1/policies/"))
                rest = {k: v for k, v in self.policies.items() if k != name}
                self.become(rest | ({name: body.decode()} if method == "PUT" else {}), self.data)
                return 200, {}
            if path == "/v1/data" and method == "PATCH":
                self.become(self.policies, self.data | {x["path"].removeprefix("/"): x["value"] for x in json.loads(body)})
                return 204, None
            if path.startswith("/v1/data/") and method == "POST":
                return 200, self.answer(unquote(path.removeprefix("/v1/data/")).replace("/", "."), json.loads(body)["input"])
        except self._opa.OpaError as e:
            return 400, {"code": "invalid_parameter", "message": str(e)}
        return 404, {"code": "resource_not_found"}


# What OPA is told by --authentication=token and a policy of its own.
TOKEN = sys.argv[2] if __name__ == "__main__" and len(sys.argv) > 2 else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: _Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/loop"):
            Event().wait()
        with self.server_state.lock:
            if TOKEN and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, document = 401, {"code": "unauthorized"}
            else:
                status, document = self.server_state.handle(self.command, self.path, body)
        text = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815  # the library's names

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def opa_server(token: str = "") -> Iterator[str]:
    """Run it in a process of its own and give its URL."""
    from tests.servers.opa import FOLDER, opa_module

    opa_module()
    process = subprocess.Popen([sys.executable, "-P", __file__, str(FOLDER), token], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    sys.path.append(str(Path(sys.argv[1])))
    _Handler.server_state = _Server()
    listening = _Quiet(("127.0.0.1", 0), _Handler)
    print(listening.server_address[1], flush=True)
    listening.serve_forever()
