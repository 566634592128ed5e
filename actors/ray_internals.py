"""Every use of Ray's internal interfaces, in one place, with a contract test (`tests/contract/test_ray_internals.py`).

Nothing here is needed for correctness: without the refill an agent starts cold, without the bind the start is refused
because a listener could be reached, without the short way past Serve calls take longer, and without the control store strays live
on and every second a line in the log says so.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.admission.reconciliation import SeenActor
from cluster.errors import UnavailableError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# What Ray imports in a worker with the first value that comes or goes, in tens of milliseconds.
SERIALISER_MODULES = ("pyarrow", "pyarrow.json", "ray._private.arrow_serialization", "ray._common.pydantic_compat")

# Where Ray's job server leaves a job's metadata for its command, and the job's id in it.
JOB_CONFIG: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
JOB_ID_KEY: Final = "job_submission_id"
# Where Ray's parts have their actors, as namespace and what the name begins with.
SERVE_ACTORS: Final = ("serve", "SERVE_")
JOB_SUPERVISORS: Final = ("SUPERVISOR_ACTOR_RAY_NAMESPACE", "_ray_internal_job_actor_")
SERVE_CONTROLLER: Final = ("serve", "SERVE_CONTROLLER_ACTOR")
_CONTROL_STORE_TIMEOUT_S: Final = 5
# By which Ray would rather go than by the address that it is given.
_ADDRESSES: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")


def prestart_workers(count: int, *, keep_alive_s: int = 3600) -> None:
    """Ask this node's raylet to start `count` idle workers; it never refills its pool by itself.

    Must run in a process that is connected to Ray. Raises whatever gRPC or Ray raise: the caller counts it and goes on.
    """
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    worker: Any = ray._private.worker.global_worker
    node = worker.node
    stubs: Any = node_manager_pb2_grpc
    messages: Any = node_manager_pb2
    address = f"{node.node_ip_address}:{node.node_manager_port}"
    request = messages.PrestartWorkersRequest(num_workers=count, keep_alive_duration_secs=keep_alive_s)
    metadata = [("ray_cluster_id", worker.gcs_client.cluster_id.hex())]
    metadata += [(k.lower(), v) for k, v in get_auth_headers_if_auth_enabled({}).items()]
    with init_grpc_channel(address) as channel:
        stubs.NodeManagerServiceStub(channel).PrestartWorkers(request, metadata=metadata, timeout=5)


class ControlStore:
    """What Ray's control store knows of actors and jobs, and the end of an actor, named or not. Blocks; for many threads.

    For a process that is connected to Ray. Its methods raise UnavailableError while the control store is away.
    """

    def __init__(self) -> None:
        """Keep one connection, which comes back by itself."""
        import grpc  # type: ignore[import-untyped]  # it has no types
        import ray
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

        self._rpc_error: type[Exception] = grpc.RpcError
        worker: Any = ray._private.worker.global_worker
        self._client = worker.gcs_client
        self._messages: Any = gcs_service_pb2
        stubs: Any = gcs_service_pb2_grpc
        channel = init_grpc_channel(self._client.address)
        self._actors = stubs.ActorInfoGcsServiceStub(channel)
        self._jobs = stubs.JobInfoGcsServiceStub(channel)
        # The job that this process came from, and whatever it creates.
        self.own_job: str = ray.get_runtime_context().get_job_id()

    def live_actors(self) -> list[SeenActor]:
        """Return every actor that has not ended, in the order of their lives, so that none is missed while it goes on."""
        from ray.core.generated import gcs_pb2

        tables: Any = gcs_pb2
        states = tables.ActorTableData
        request = self._messages.GetAllActorInfoRequest
        found: dict[str, SeenActor] = {}
        # By state, because the store keeps very many that have ended.
        for state in (states.DEPENDENCIES_UNREADY, states.PENDING_CREATION, states.RESTARTING, states.ALIVE):
            asked = request(filters=request.Filters(state=state))
            for a in self._call(self._actors.GetAllActorInfo, asked).actor_table_data:
                seen = SeenActor(a.actor_id.hex(), a.name, a.ray_namespace, a.class_name, a.job_id.hex(), a.pid)
                found[seen.actor_id] = seen
        return list(found.values())

    def job_metadata(self, job_id: str) -> dict[str, str]:
        """Return what the driver of a job said of itself; nothing for a job that is not known."""
        asked = self._messages.GetAllJobInfoRequest(
            job_or_submission_id=job_id, skip_submission_job_info_field=True, skip_is_running_tasks_field=True
        )
        jobs = self._call(self._jobs.GetAllJobInfo, asked).job_info_list
        return {str(k): str(v) for j in jobs if j.job_id.hex() == job_id for k, v in j.config.metadata.items()}

    def kill_actor(self, actor_id: str) -> None:
        """End an actor at once; it is not started again."""
        request = self._messages.KillActorViaGcsRequest(actor_id=bytes.fromhex(actor_id), force_kill=True, no_restart=True)
        self._call(self._actors.KillActorViaGcs, request)

    def _call(self, method: Any, request: Any) -> Any:
        metadata = [("ray_cluster_id", self._client.cluster_id.hex())]
        try:
            return method(request, metadata=metadata, timeout=_CONTROL_STORE_TIMEOUT_S)
        except self._rpc_error as e:
            raise UnavailableError(f"Ray's control store did not answer: {str(e)[:200]}") from None


def use_token_on_loopback(token_path: Path) -> None:
    """Make this process, which may have imported Ray already, a driver with this token that keeps to loopback.

    Ray reads both when it is imported, so its copies are set too. Must be called before `ray.init`.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray import _raylet
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    core: Any = _raylet
    core.Config.initialize("")


def start_node(arguments: Sequence[str]) -> None:
    """Run Ray's own command line for a node that joins, also on loopback, which Ray refuses to do by itself.

    For a process of its own: it stays until it is ended, and changes Ray's modules here alone. What it starts still
    finds in its environment that loopback addresses are to be left as they are.
    """
    from ray._private import ray_constants, services
    from ray.scripts import scripts

    ray_constants.ENABLE_RAY_CLUSTER = True
    # Otherwise Ray puts the machine's address in loopback's place, at which nobody listens.
    services.resolve_ip_for_localhost = lambda host: host
    scripts.cli.main(args=list(arguments), prog_name="ray")


def job_metadata() -> dict[str, str] | None:
    """Return the metadata of the job that this process belongs to, its id under JOB_ID_KEY; None when it belongs to none."""
    if JOB_CONFIG not in os.environ:
        return None
    metadata = json.loads(os.environ[JOB_CONFIG]).get("metadata") or {}
    return {str(k): str(v) for k, v in metadata.items()}


def amend_job_metadata(more: Mapping[str, str]) -> None:
    """Add to that metadata, for this process and those that it starts from now on."""
    config = json.loads(os.environ[JOB_CONFIG])
    os.environ[JOB_CONFIG] = json.dumps(config | {"metadata": (config.get("metadata") or {}) | dict(more)})


@contextlib.contextmanager
def nothing_but_loopback(host: str) -> Iterator[None]:
    """Keep Ray's HTTP client, while inside, to the address that it is given, and the token out of any proxy's hands."""
    before = {name: os.environ.get(name) for name in (*_ADDRESSES, *_NO_PROXY)}
    for name in _ADDRESSES:
        os.environ.pop(name, None)
    for name in _NO_PROXY:
        os.environ[name] = host
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def bind_replica_server_to(host: str) -> None:
    """Make this Serve replica's own gRPC server listen on `host`; Serve asks for every interface.

    Must be called before the replica is initialised, that is in the constructor of the deployment's class.
    """
    from ray.serve._private import replica as module

    replica: Any = module
    original = replica.add_port_to_grpc_server

    def on_host(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]", f"[{host}]" if ":" in host else host))

    replica.add_port_to_grpc_server = on_host


def answer_before_serve(app: ASGIApp, takes: Callable[[Scope], bool]) -> None:
    """Make this Serve replica's own HTTP server hand the requests that `takes` names to `app`, and only others to Serve.

    Serve's frame round a request (two tasks, a queue, a log line, its own numbers) costs more than a call's whole way through
    the gateway. What holds without it: the server, not Serve, waits for requests under way when a replica goes. What `app`
    does by itself is to end when the client leaves or takes too long, and to bound what it holds.

    Must be called before the replica is initialised, that is in the constructor of the deployment's class.
    """
    from ray.serve._private import http_util as module

    server: Any = module
    original = server._apply_middlewares

    def with_app_first(serve: ASGIApp, middlewares: list[Any]) -> ASGIApp:
        behind: ASGIApp = original(serve, middlewares)

        async def first(scope: Scope, receive: Receive, send: Send) -> None:
            await (app if takes(scope) else behind)(scope, receive, send)

        return first

    server._apply_middlewares = with_app_first
