"""What this cluster listens on, read from the kernel, and the refusal to run when others could reach it."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigurationError
from cluster.settings import Settings

LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening TCP socket and the process that holds it."""

    address: str
    port: int
    pid: int


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host` (a name counts as reachable unless it is localhost)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def listeners(pids: Iterable[int]) -> list[Listener]:
    """Return every TCP socket that these processes listen on, from /proc/net/tcp and tcp6."""
    sockets = dict(_listening_inodes())
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(link.readlink())
                    if target.startswith("socket:[") and (at := sockets.get(target[8:-1])):
                        found.append(Listener(*at, pid))
    return found


def assert_private(settings: Settings, pids: Iterable[int]) -> None:
    """Raise ConfigurationError that names each listener which other machines could reach, unless `expose` is set."""
    if settings.expose:
        return
    open_ones = sorted({(x.address, x.port, x.pid) for x in listeners(pids) if not is_loopback(x.address)})
    if open_ones:
        lines = ", ".join(f"{a}:{p} (pid {pid})" for a, p, pid in open_ones)
        raise ConfigurationError(
            f"These listeners can be reached from other machines: {lines}.",
            hint="Nothing was left running. Set SOVEREIGN_EXPOSE=true if that is meant.",
        )


def _listening_inodes() -> Iterable[tuple[str, tuple[str, int]]]:
    for table, width in (("/proc/net/tcp", 8), ("/proc/net/tcp6", 32)):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == LISTEN:
                    host, port = columns[1].split(":")
                    yield columns[9], (_address(host, width), int(port, 16))


def _address(digits: str, width: int) -> str:
    # The kernel prints each 32-bit word in the machine's byte order.
    raw = b"".join(bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, width, 8))
    return str(ipaddress.ip_address(raw))
