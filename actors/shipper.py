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

from actors.curation import CurationLoop
from actors.nodes import nodes_of_ray
from actors.orphaned_journals import OrphanedJournals
from actors.ray_actors import Handle, create
from cluster import wiring
from cluster.clock import SystemClock
from cluster.errors import SovereignError
from cluster.journal.backlog import Backlog
from cluster.lake.backoff import Backoff
from cluster.lake.condition import ShippingCondition
from cluster.settings import Settings
from cluster.telemetry import tracing
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics, render

log = logging.getLogger(__name__)

# What the names of shippers begin with.
PREFIX = "shipper:"
SAY_INTERVAL_S = 1.0


class ShipperActor:
    """Ships on every interval, and at once when asked; says every second how much waits, also while the store hangs."""

    def __init__(self, settings: str, metrics_port: int) -> None:
        self._settings = Settings.of_this_node(settings)
        configure_logging("shipper", level=self._settings.log_level, directory=self._settings.log_dir)
        self._metrics = Metrics.of_process(self._settings.metrics_dir, "shipper")
        tracing.configure_tracing("shipper", self._settings, self._metrics.spans_dropped)
        self._shipper = wiring.build_shipper(self._settings)
        self._orphans = OrphanedJournals(self._settings)
        self._orphan_step = threading.Lock()
        self._stopped = False
        self._waiting: dict[str, str] = {}
        self._step = threading.Lock()
        self._saying = threading.Lock()
        self._clock = SystemClock()
        self._condition = ShippingCondition()
        # For what keeps the shipper itself from working; it waits for the store by its own.
        self._backoff = Backoff(first_s=self._settings.seal_interval_s)
        self._retry_after_s = 0.0
        self._ended = threading.Event()
        self._say()
        threading.Thread(target=self._say_for_ever, name="backlog", daemon=True).start()
        self._exporter = _serve_metrics(self._settings, metrics_port)
        # One node looks after what others left, so that two never do.
        of_head = [] if self._settings.node else [self._ship_for_others(), CurationLoop(self._settings).run()]
        loops = [self._ship_for_ever(), *of_head]
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
        self._ended.set()
        await asyncio.to_thread(self._close_orphans)
        self._metrics.flush()
        self._shipper.close()

    def _close_orphans(self) -> None:
        with self._orphan_step:
            self._stopped = True
            self._orphans.close()

    async def _ship_for_ever(self) -> None:
        pause_s = self._settings.seal_interval_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._settings.seal_interval_s
            try:
                await asyncio.to_thread(self._ship)
                self._backoff.succeeded()
            except Exception:  # said where it happened; a shipper that stops for any reason would lose nothing, and ship nothing
                pause_s = max(pause_s, self._backoff.failed())

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
            try:
                report = self._shipper.step()
            except Exception as e:
                known = isinstance(e, SovereignError)
                if line := self._condition.failed(str(e) if known else f"the shipper failed ({e!r}).", self._clock.now_us()):
                    log.warning(line, exc_info=None if known else e)
                raise
            if report.store_error:
                if line := self._condition.failed(report.store_error, self._clock.now_us()):
                    log.warning(line)
            elif not report.retry_after_s and (line := self._condition.worked(self._clock.now_us())):
                log.warning(line)
            self._retry_after_s = report.retry_after_s
        self._metrics.shipped(report)
        self._say()
        return report.to_dict()

    def _say_for_ever(self) -> None:
        while not self._ended.wait(SAY_INTERVAL_S):
            try:
                self._say()
            except Exception:
                log.exception("how much waits for the lake could not be found out")

    def _say(self) -> None:
        """Tell every process of the node, and the metrics, how much waits."""
        # Measured by whoever says it and said before anybody else measures: an older number never replaces a newer one.
        with self._saying:
            measured_us, waiting_bytes = self._clock.monotonic_us(), self._shipper.waiting_bytes()
            since_us = self._condition.stuck_since_us
            stuck_s = max(0, self._clock.now_us() - since_us) / 1_000_000 if since_us else 0.0
            self._metrics.waiting(waiting_bytes, self._settings.journal_limit_bytes, stuck_s)
            backlog = Backlog(waiting_bytes, measured_us, since_us, self._retry_after_s)
            # On a full disk it is not said, and after a while nobody admits anything: the disk has to be seen to in any case.
            with contextlib.suppress(OSError):
                backlog.write(self._settings.journal_dir)


def _serve_metrics(settings: Settings, port: int) -> ThreadingHTTPServer:
    """Serve the node's merged metrics at /metrics on the node's own address."""

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            openmetrics = "application/openmetrics-text" in self.headers.get("accept", "")
            body = render(settings.metrics_dir, openmetrics=openmetrics) if self.path == "/metrics" else b""
            kind = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
            self.send_response(200 if body else 404)
            self.send_header("content-type", f"{kind}; charset=utf-8")
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
