"""The gateway deployment: one Serve replica is one process that authenticates, bounds and forwards calls."""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import ASGIApp

from actors.directory import Directory, Governance
from actors.heap import settle
from actors.invoker import Invoker
from actors.leases import Leases
from actors.ray_actors import HEAD_RESOURCE
from actors.ray_internals import answer_before_serve, bind_replica_server_to
from cluster import wiring
from cluster.clock import SystemClock
from cluster.settings import Settings
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics
from cluster.telemetry.tracing import configure_tracing
from serve_apps import autoscaling
from serve_apps.autoscaling import CALLS, WAIT_P95, LoopWait
from serve_apps.idempotency import build_idempotency
from serve_apps.runs import build_runs
from serve_apps.switch import Switch

NAME = "gateway"
_SWITCH = Switch()


def _application() -> ASGIApp:
    return _SWITCH


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
        leases = Leases(settings)
        invoker = Invoker(
            directory,
            places=settings.places,
            waiting=settings.queue_limit - settings.places,
            gate=gate,
            leases=leases,
            metrics=metrics,
        )
        journal = wiring.open_journal(settings, wiring.process_writer_id("gateway"))
        _SWITCH.runs = build_runs(settings, invoker, journal)
        self._edge = Edge(
            settings,
            authenticator=wiring.build_authenticator(settings),
            governance=governance,
            invoker=invoker,
            leases=leases,
            journal=journal,
            gate=gate,
            metrics=metrics,
            clock=SystemClock(),
            runs=_SWITCH.runs,
            idempotency=build_idempotency(settings, journal),
        )
        self._wait = LoopWait()
        _SWITCH.app = app = create_app(self._edge, wiring.build_authorization_server(settings, self._edge.keep))
        answer_before_serve(app, app.is_call)
        settle(collect=True)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what autoscaling goes by, for Serve; always numbers, or Serve never asks this replica again."""
        return {CALLS: float(self._edge.invoker.load), WAIT_P95: self._wait.p95_s()}

    def __del__(self) -> None:
        edge = getattr(self, "_edge", None)
        if edge is not None:
            edge.close()


def deploy(settings: Settings) -> None:
    """Let Serve run the gateways, and return when it does; those that run already are replaced, each by one that is there."""
    serve.run(_deployment(settings), name="sovereign", route_prefix="/")


def _deployment(settings: Settings) -> Any:
    scaling = autoscaling.config(settings)
    # Decorated here and not above: a decorated class travels by value, and its copy of the switch would not be ours.
    deployed = serve.deployment(
        name=NAME,
        **({"autoscaling_config": scaling} if scaling else {"num_replicas": settings.most_gateways}),
        # Above our own bound, or calls would queue where we neither see nor refuse them.
        max_ongoing_requests=settings.queue_limit * 2 + 64,
        # One that is taken away ends the calls that it holds first.
        graceful_shutdown_timeout_s=settings.call_timeout_s + 5,
        # Where one is replaced, the new one comes first.
        max_surge_percent=100,
        health_check_period_s=5,
        # With the way in, which is on the head: a replica elsewhere would only add a hop, and its ports are that node's.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_RESOURCE: 0.001}},
    )(serve.ingress(_application)(Gateway))
    return deployed.bind(settings.to_json())
