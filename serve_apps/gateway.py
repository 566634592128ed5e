"""The gateway deployment: one Serve replica is one process that authenticates, bounds and forwards calls."""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.directory import Directory, Governance
from actors.heap import settle
from actors.invoker import Invoker
from actors.leases import Leases
from actors.ray_actors import HEAD_RESOURCE
from actors.ray_internals import bind_replica_server_to
from cluster import wiring
from cluster.clock import SystemClock
from cluster.settings import Settings
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics
from cluster.telemetry.tracing import configure_tracing
from serve_apps import autoscaling
from serve_apps.autoscaling import CALLS, WAIT_P95, LoopWait

NAME = "gateway"


class _Switch:
    """Serve builds the ASGI application before the replica has its settings; ours is put in its place afterwards."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)


_SWITCH = _Switch()


def _application() -> ASGIApp:
    return _SWITCH


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Gateway:
    """One replica of the way in."""

    def __init__(self, settings_json: str) -> None:
        from serve_apps.app import create_app
        from serve_apps.edge import Edge

        settings = Settings.from_json(settings_json)
        bind_replica_server_to(settings.host)
        configure_logging("gateway", level=settings.log_level, directory=settings.log_dir)
        governance = Governance()
        metrics = Metrics.of_process(settings.metrics_dir, "gateway")
        configure_tracing("gateway", settings, metrics.spans_dropped)
        gate = wiring.journal_gate(settings)
        directory = Directory(governance, metrics)
        self._edge = Edge(
            settings,
            authenticator=wiring.build_authenticator(settings),
            governance=governance,
            invoker=Invoker(directory, most=settings.queue_limit, gate=gate, leases=Leases(settings), metrics=metrics),
            journal=wiring.open_journal(settings, wiring.process_writer_id("gateway")),
            gate=gate,
            metrics=metrics,
            clock=SystemClock(),
        )
        self._wait = LoopWait()
        _SWITCH.app = create_app(self._edge, wiring.build_authorization_server(settings, self._edge.keep))
        settle(collect=True)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what autoscaling goes by, for Serve; always numbers, or Serve never asks this replica again."""
        return {CALLS: float(self._edge.invoker.calls), WAIT_P95: self._wait.p95_s()}

    def __del__(self) -> None:
        edge = getattr(self, "_edge", None)
        if edge is not None:
            edge.close()


def deployment(settings: Settings) -> Any:
    """Return the application that `serve.run` deploys."""
    scaling = autoscaling.config(settings)
    # Decorated here and not above: a decorated class travels by value, and its copy of the switch would not be ours.
    deployed = serve.deployment(
        name=NAME,
        **({"autoscaling_config": scaling} if scaling else {"num_replicas": settings.most_gateways}),
        # Above our own bound, or calls would queue where we neither see nor refuse them.
        max_ongoing_requests=settings.queue_limit * 2 + 64,
        # One that is taken away ends the calls that it holds first.
        graceful_shutdown_timeout_s=settings.call_timeout_s + 5,
        health_check_period_s=5,
        # With the way in, which is on the head: a replica elsewhere would only add a hop, and its ports are that node's.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_RESOURCE: 0.001}},
    )(serve.ingress(_application)(Gateway))
    return deployed.bind(settings.to_json())
