"""The driver that creates the platform's parts on a fresh cluster or on a node that joins, and ends them in order.

Run by a supervisor as `python -m serve_apps.bootstrap start|stop|join|leave <gcs address>`, with settings and ports as JSON on
standard input, never as arguments; what it prints on standard output is progress.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import ray
from ray.exceptions import RayError

from actors.governance import start_governance
from actors.limiter import start_limiter
from actors.local_model import start_local_model
from actors.nodes import living_starts, nodes_of_ray
from actors.ray_actors import GOVERNANCE, find, names
from actors.ray_environment import NAMESPACE, Ports
from actors.shipper import PREFIX as SHIPPERS
from actors.shipper import shipper_name, start_shipper
from cluster import wiring
from cluster.agents.placement import Node
from cluster.errors import UnavailableError, from_problem
from cluster.settings import Settings

READY_TIMEOUT_S = 60.0


def start(settings: Settings, ports: Ports) -> None:
    """Create shipper, governance, model and gateway, and return when a request gets through."""
    _say("checking the object store")
    wiring.check_secrets(settings)
    wiring.check_object_store(settings)
    wiring.ensure_first_api_key(settings)
    wiring.sign_policies(settings)
    node_id = ray.get_runtime_context().get_node_id()
    _say("starting the shipper and governance")
    shipper = start_shipper(settings, node_id, ports.node_metrics)
    governance = start_governance(settings)
    limiter = start_limiter(settings)
    model = start_local_model(settings.host, ports.local_model) if settings.local_model else None
    _say("starting the gateway")
    _start_gateway(settings, ports)
    ray.get(shipper.ready.remote(), timeout=READY_TIMEOUT_S)
    ray.get([governance.ready.remote(), limiter.ready.remote()], timeout=READY_TIMEOUT_S)
    if model is not None:
        _say("waiting for the local model")
        ray.get(model.ready.remote(), timeout=READY_TIMEOUT_S)
    _wait_until_ready(f"http://{settings.host}:{ports.http}/health/ready")
    ray.get(governance.fill_pool.remote(), timeout=READY_TIMEOUT_S)


def stop() -> None:
    """Passivate agents, end the gateway, and ship what is left."""
    from ray import serve

    with contextlib.suppress(RayError, ValueError):
        ray.get(find(GOVERNANCE).drain_all.remote(), timeout=12)
    with contextlib.suppress(Exception):  # a Serve that is half down must not keep facts from being shipped
        serve.delete("sovereign", _blocking=True)
    with contextlib.suppress(RayError, ValueError):
        ray.get([find(name).stop.remote() for name in names(SHIPPERS)], timeout=8)


def join(settings: Settings, ports: Ports, start: str) -> None:
    """Wait for this start of this node, and have governance give it a shipper and agents."""
    governance = find(GOVERNANCE)
    _wait_for_node(settings.node, start)
    of_cluster = Settings.of_this_node(_answer(governance.cluster_settings.remote()))
    # Raises where the cluster's tools are confined and this node can't confine them.
    wiring.open_sandbox(of_cluster.sandbox)
    wiring.check_secrets(of_cluster)
    _answer(governance.admit_node.remote(settings.node, ports.node_metrics))


def leave(settings: Settings, start: str) -> None:
    """End the node's agents, which wake elsewhere when they are called, and ship what is left."""
    node = _wait_for_node(settings.node, start)
    _answer(find(GOVERNANCE).drain_node.remote(settings.node, "leave"))
    with contextlib.suppress(RayError, ValueError):
        ray.get(find(shipper_name(node.ray_id)).stop.remote(), timeout=8)


def _wait_for_node(name: str, start: str) -> Node:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        # Ray may not have given an earlier one up yet, and what is started there would never be.
        if living_starts(name) == [start]:
            return next(node for node in nodes_of_ray() if node.name == name)
        time.sleep(0.1)
    raise UnavailableError(f"Ray does not know node {name}, or knows it twice, after {READY_TIMEOUT_S:.0f} s.")


def _answer(reference: Any) -> Any:
    document = json.loads(ray.get(reference, timeout=READY_TIMEOUT_S))
    if "problem" in document:
        raise from_problem(document["problem"])
    return document["ok"]


def _start_gateway(settings: Settings, ports: Ports) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    from serve_apps.gateway import deploy

    http = HTTPOptions(host=settings.host, port=ports.http, request_timeout_s=settings.call_timeout_s + 30)
    serve.start(proxy_location=ProxyLocation.EveryNode, http_options=http)
    named = settings.model_copy(update={"public_url": settings.public_url or f"http://{settings.host}:{ports.http}"})
    deploy(named)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    reason: object = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  # our own address
                return
        except (urllib.error.URLError, OSError) as e:
            reason = e
            time.sleep(0.05)
    raise UnavailableError(f"{url} did not become ready: {reason}")


def _say(what: str) -> None:
    print(what, flush=True)  # the supervisor reads it


def main() -> int:
    """Run the verb of the command line; returns the exit code."""
    verb, address = sys.argv[1:]
    request = json.load(sys.stdin)
    settings, ports = Settings.from_json(request["settings"]), Ports(**request["ports"])
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    if verb == "start":
        start(settings, ports)
    elif verb == "join":
        join(settings, ports, request["start"])
    elif verb == "leave":
        leave(settings, request["start"])
    else:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
