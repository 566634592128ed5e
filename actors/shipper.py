"""The node's shipper: turns the journals of every process here into sealed segments in the lake, and shows the metrics.

There is one per node, and the head's also ships what nodes left that are gone. It works in threads of its own process;
killed at any instant, the next one goes on from what the killed one had written (`cluster.lake.ship`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from actors.nodes import nodes_of_ray
from actors.orphaned_journals import OrphanedJournals
from actors.ray_actors import Handle, create
from cluster import wiring
from cluster.errors import SovereignError
from cluster.settings import Settings
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics, render

log = logging.getLogger(__name__)

# What the names of shippers begin with.
PREFIX = "shipper:"


class ShipperActor:
    """Ships on every interval, and at once when asked."""

    def __init__(self, settings: str, metrics_port: int) -> None:
        self._settings = Settings.of_this_node(settings)
        configure_logging("shipper", level=self._settings.log_level, directory=self._settings.log_dir)
        self._metrics = Metrics.of_process(self._settings.metrics_dir, "shipper")
        self._shipper = wiring.build_shipper(self._settings)
        self._orphans = OrphanedJournals(self._settings)
        self._orphan_step = threading.Lock()
        self._stopped = False
        self._waiting: dict[str, str] = {}
        self._step = threading.Lock()
        self._exporter = _serve_metrics(self._settings, metrics_port)
        # One node looks after what others left, so that two never do.
        loops = [self._ship_for_ever()] + ([] if self._settings.node else [self._ship_for_others()])
        self._loops = [asyncio.ensure_future(loop) for loop in loops]

    async def ready(self) -> None:
        """Return when this process answers."""

    async def flush(self) -> bytes:
        """Ship everything that is written by now; returns the report as JSON."""
        return json.dumps(await asyncio.to_thread(self._ship)).encode()

    async def waiting(self) -> bytes:
        """Return JSON: the nodes that are gone and whose journals can't be shipped from here now, each with the reason."""
        return json.dumps(self._waiting).encode()

    async def stop(self) -> None:
        """Ship what is left and close the journal."""
        for loop in self._loops:
            loop.cancel()
        with contextlib.suppress(SovereignError):
            await asyncio.to_thread(self._ship)
        await asyncio.to_thread(self._close_orphans)
        self._metrics.flush()
        self._shipper.close()

    def _close_orphans(self) -> None:
        with self._orphan_step:
            self._stopped = True
            self._orphans.close()

    async def _ship_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.seal_interval_s)
            try:
                await asyncio.to_thread(self._ship)
            except SovereignError as e:
                log.warning("nothing was shipped: %s", e)
            except Exception:
                log.exception("the shipper failed; it goes on with the next interval")

    async def _ship_for_others(self) -> None:
        """Ship what nodes left that are gone; beside our own shipping, because Ray may be slow to say which those are."""
        while True:
            await asyncio.sleep(max(1.0, self._settings.seal_interval_s))
            try:
                if self._settings.nodes_dir.is_dir():
                    await asyncio.to_thread(self._ship_orphans)
            except Exception:
                log.exception("the journals of nodes that are gone wait for the next interval")

    def _ship_orphans(self) -> None:
        alive = {node.name for node in nodes_of_ray() if node.alive}
        with self._orphan_step:
            if not self._stopped:
                self._waiting = self._orphans.step(alive)

    def _ship(self) -> dict[str, Any]:
        with self._step:
            report = self._shipper.step()
        self._metrics.shipped(report)
        return report.to_dict()


def _serve_metrics(settings: Settings, port: int) -> ThreadingHTTPServer:
    """Serve the node's merged metrics at /metrics on the node's own address."""

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = render(settings.metrics_dir) if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((settings.host, port), Exporter)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def shipper_name(node_id: str) -> str:
    """Return the Ray name of a node's shipper."""
    return f"{PREFIX}{node_id}"


def start_shipper(settings: Settings, node_id: str, metrics_port: int) -> Handle:
    """Create the shipper of the node with this Ray id, or return the one that runs."""
    name = shipper_name(node_id)
    return create(ShipperActor, settings.to_json(), metrics_port, name=name, restarts=True, node_id=node_id)
