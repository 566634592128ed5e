"""Every use of Ray's internal interfaces, in one place, with a contract test (`tests/contract/test_ray_internals.py`).

Nothing here is needed for correctness: without the refill an agent starts cold, and without the bind the start is
refused because a listener could be reached.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

# What Ray imports in a worker with the first value that comes or goes, in tens of milliseconds.
SERIALISER_MODULES = ("pyarrow", "pyarrow.json", "ray._private.arrow_serialization", "ray._common.pydantic_compat")

# Where Ray's job server leaves a job's metadata for its command, and the job's id in it.
JOB_CONFIG: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
JOB_ID_KEY: Final = "job_submission_id"
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
