"""The internal interfaces of Ray that we use are what we take them for; a new Ray that moves them turns this red."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actors.ray_internals import answer_before_serve
from tests.servers.cluster import RunningCluster, eventually

PRESTART = """
from actors.ray_connection import connect_to
from actors.ray_internals import prestart_workers
from cluster.settings import Settings
connect_to(Settings.load())
prestart_workers(2)
"""

# Each state is asked for by itself; an actor without a name, which has ended, is in none.
CONTROL_STORE = """
import json, time
import ray
from actors.ray_connection import connect_to
from actors.ray_internals import ControlStore
from cluster.settings import Settings
connect_to(Settings.load())

class Nameless:
    pass

mine = ray.remote(num_cpus=0)(Nameless).options(lifetime="detached", max_restarts=-1).remote()
store = ControlStore()
first = {}
while mine._actor_id.hex() not in first:
    first = {a.actor_id: a for a in store.live_actors()}
store.kill_actor(mine._actor_id.hex())
while mine._actor_id.hex() in {a.actor_id for a in store.live_actors()}:
    time.sleep(0.05)
seen = [(a.namespace, a.name, a.class_name, a.pid) for a in first.values()]
ours = first[mine._actor_id.hex()]
said = store.job_metadata(store.own_job)
print(json.dumps({"seen": seen, "mine": [ours.class_name, ours.job_id == store.own_job], "said": said}))
"""


def test_prestart_adds_idle_workers(cluster: RunningCluster) -> None:
    """The node manager takes the request, authenticated, and idle workers appear."""
    before = len(cluster.processes("ray::IDLE"))
    done = subprocess.run(
        [sys.executable, "-c", PRESTART], env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: len(cluster.processes("ray::IDLE")), lambda n: n > before)


def test_the_control_store_lists_live_actors_and_ends_one_without_a_name(cluster: RunningCluster) -> None:
    """It is asked by its own protocol: actors by state with name, class, job and process; what a driver said of itself.

    A job's metadata, and who else is ended: tests/integration/test_strays.py.
    """
    done = subprocess.run(
        [sys.executable, "-c", CONTROL_STORE], env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    [governance] = cluster.processes("ray::GovernanceActor")
    assert ["sovereign", "governance", "GovernanceActor", governance.pid] in found["seen"]
    assert (found["mine"], found["said"]) == (["Nameless", True], {})


def test_the_pool_is_refilled_after_a_take(cluster: RunningCluster) -> None:
    """A wake takes an idle worker, and after a moment another one stands ready in its place."""
    cluster.register("taker", model="scripted:ok")
    idle = {p.pid for p in eventually(lambda: cluster.processes("ray::IDLE"))}
    assert cluster.ask("taker").status_code == 200
    taken = {p.pid for p in cluster.processes("AgentActor")}
    assert idle & taken, "the agent did not start in an idle worker"
    eventually(lambda: {p.pid for p in cluster.processes("ray::IDLE")} - idle)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Serve's own, when it is imported
async def test_calls_pass_serve_by_and_are_waited_for_when_its_server_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's HTTP server asks our application first, and stops only when the call that is under way has its answer."""
    from ray.serve._private import http_util
    from ray.serve.config import HTTPOptions

    monkeypatch.setattr(http_util, "_apply_middlewares", http_util._apply_middlewares)
    begun, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    async def calls(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await go_on.wait()
        await Response("ours")(scope, receive, send)

    answer_before_serve(calls, lambda scope: scope["path"] == "/call")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    task, server = await http_util.start_asgi_http_server(
        Response("Serve's"), HTTPOptions(host="127.0.0.1", port=port), event_loop=asyncio.get_running_loop()
    )
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert [(await http.get(path)).text for path in ("/call", "/-/healthz")] == ["ours", "Serve's"]
        begun.clear()
        go_on.clear()
        call = asyncio.ensure_future(http.get("/call"))
        await begun.wait()
        server.should_exit = True
        while server.servers[0].sockets:  # noqa: ASYNC110  # the same
            await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        assert (await call).text == "ours"
    await task
