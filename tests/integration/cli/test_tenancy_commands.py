"""`sovereign tenants` and `sovereign keys` as an operator types them, against a real gateway over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from cli import http
from cli.main import app
from cli.output import OUTPUT
from cluster.errors import NotFoundError
from cluster.settings import Settings
from tests.gateways import gateway

Sovereign = Callable[..., Any]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A gateway of a fresh home, on a free port, in a thread of its own."""
    ready, ports, stop = threading.Event(), list[int](), list[Callable[[], None]]()

    async def serve() -> None:
        async with gateway(Settings.load(home=tmp_path), monkeypatch) as application:
            server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
            task = asyncio.ensure_future(server.serve())
            while not server.started:  # noqa: ASYNC110  # it tells nobody when it is
                await asyncio.sleep(0.01)
            ports.append(server.servers[0].sockets[0].getsockname()[1])
            stop.append(lambda: setattr(server, "should_exit", True))
            ready.set()
            await task

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{ports[0]}"
    stop[0]()
    thread.join(30)


@pytest.fixture
def sovereign(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sovereign]:
    """The command with --json, in this process: returns what it prints, and raises what it fails with."""
    monkeypatch.setattr(http, "url_of", lambda settings: url)

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    yield run
    OUTPUT.as_json = False


def test_a_tenants_life_by_command(sovereign: Sovereign, url: str) -> None:
    """Made, given a project and a key, its plan changed, suspended and resumed; and what people read of it."""
    assert sovereign("tenants", "make", "acme", "--plan", "trial")["state"] == "active"
    made = sovereign("tenants", "projects", "acme", "--make", "web")["projects"][1]
    assert made == {"project_id": "web", "budget": {}, "limits": {}}
    key = sovereign("keys", "make", "first", "--tenant", "acme", "--project", "web", "--role", "developer", "--expires-days", "1")

    def agents() -> int:
        return httpx.get(f"{url}/api/v1/agents", headers={"authorization": f"Bearer {key['key']}"}).status_code

    assert agents() == 200
    assert sovereign("tenants", "change", "acme", "--plan", "standard")["plan"] == "standard"
    assert [(t["tenant_id"], t["plan"]) for t in sovereign("tenants", "list", "--limit", "1")["tenants"]] == [
        ("acme", "standard")
    ]
    assert sovereign("tenants", "suspend", "acme")["state"] == "suspended"
    assert sovereign("tenants", "show", "acme")["projects"] == ["default", "web"]
    assert sovereign("tenants", "resume", "acme")["state"] == "active"


def test_a_keys_life_by_command(sovereign: Sovereign) -> None:
    """Made with scopes, listed without its secret, rotated, revoked; a foreign id is an error like any other."""
    made = sovereign("keys", "make", "ci", "--scope", "sovereign:agents:read", "--scope", "sovereign:agents:list")
    assert made["scopes"] == ["sovereign:agents:list", "sovereign:agents:read"]
    rotated = sovereign("keys", "rotate", made["key_id"], "--overlap-s", "60")
    assert rotated["key"] != made["key"]
    listed = {k["key_id"]: k for k in sovereign("keys", "list")["keys"]}
    assert listed[made["key_id"]]["last4"] == rotated["key"][-4:]
    assert sovereign("keys", "revoke", made["key_id"])["state"] == "revoked"
    with pytest.raises(NotFoundError):
        sovereign("keys", "revoke", "0" * 16)


def test_people_get_words(sovereign: Sovereign, tmp_path: Path) -> None:
    """Tables without --json; a key alone on stdout, so that it can go into a file."""

    def said(*arguments: str) -> str:
        OUTPUT.as_json = False
        done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path)], catch_exceptions=False)
        return done.stdout

    assert said("tenants", "make", "acme", "--plan", "trial") == "acme is active, by plan trial.\n"
    assert {"acme", "administrator", "default", "policy"} <= set(said("tenants", "list").split())
    assert said("tenants", "projects", "acme").split()[-2:] == ["default", "-"]
    key = said("keys", "make", "first", "--tenant", "acme")
    assert key.startswith("sk-sov-")
    assert key.count("\n") == 1
    assert key[-5:-1] in said("keys", "list", "--tenant", "acme").split()
    assert said("keys", "list", "--tenant", "trial") == "There is no key.\n"
