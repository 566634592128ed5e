"""What a tool may fetch from the network: asked of the host, checked name by name and address by address.

The child has no network. The host resolves a name once, checks every address it got, and connects to a checked one, so
that a second answer of the name server cannot point elsewhere. A redirect is a new request with the same checks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

MAX_REDIRECTS = 3
MAX_PAGE_BYTES = 128 << 10
FETCH_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not the public internet, though one version of Python or another takes them for it (IANA's special-purpose registries).
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",
            "2001:db8::/32",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)

Resolver = Callable[[str, int], Awaitable[Iterable[str]]]


class EgressRefusedError(ValueError):
    """The address is not one that this tool may reach, or what is there is not what a tool may get."""


@dataclass(frozen=True, slots=True)
class Page:
    """What was fetched, cut at MAX_PAGE_BYTES."""

    url: str
    status: int
    content_type: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as the tool's protocol carries them."""
        return {"url": self.url, "status": self.status, "content_type": self.content_type, "text": self.text}


async def system_resolver(host: str, port: int) -> list[str]:
    """Return all addresses of `host` that the machine's resolver knows; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The hosts that a tool may fetch from: exact names, or `*.name` for any name below it, on the usual ports.

    `operator_origins` are the operator's own endpoints ("http://127.0.0.1:8888"), which alone may be private.
    Fails closed: with neither, nothing may be fetched. `any_public_host` lets every host of the public internet be reached,
    by https alone: for what a tenant asks the platform itself to call, never for a tool.
    """

    hosts: tuple[str, ...] = ()
    operator_origins: tuple[str, ...] = ()
    any_public_host: bool = False
    resolve: Resolver = field(default=system_resolver, compare=False)
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    async def fetch(self, url: str) -> Page:
        """Return the page at `url`. Raises EgressRefusedError with the reason, for the model to read."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                for _ in range(MAX_REDIRECTS + 1):
                    page, location = await self._get(url)
                    if location is None:
                        return page
                    url = urljoin(url, location)
        except TimeoutError:
            raise EgressRefusedError(f"The page took longer than {FETCH_TIMEOUT_S:g} s.") from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as e:
            raise EgressRefusedError(f"The page cannot be fetched: {type(e).__name__}: {str(e)[:200]}") from None
        raise EgressRefusedError(f"The page redirects more than {MAX_REDIRECTS} times.")

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Return the status that `url` answers a POST with; redirects are not followed. Raises EgressRefusedError."""
        *_, private = self.check(url)
        try:
            async with (
                asyncio.timeout(FETCH_TIMEOUT_S),
                self._pool(private) as pool,
                pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
            ):
                return int(response.status)
        except TimeoutError:
            raise EgressRefusedError(f"There was no answer within {FETCH_TIMEOUT_S:g} s.") from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as e:
            raise EgressRefusedError(f"It cannot be reached: {type(e).__name__}: {str(e)[:200]}") from None

    def check(self, url: str) -> tuple[str, str, int, bool]:
        """Return (scheme, host, port, may be private) of `url`; raises EgressRefusedError when the policy has no such host."""
        if len(url) > 2048 or not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
            raise EgressRefusedError("The address is not a plain URL.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise EgressRefusedError("The address is not a URL.") from None
        host = (parts.hostname or "").rstrip(".").lower()
        try:
            host.encode("idna")  # as the resolver will
        except UnicodeError:
            raise EgressRefusedError("The address names no host.") from None
        if parts.scheme not in _PORTS or not host or parts.username is not None or parts.password is not None:
            raise EgressRefusedError("Only http and https addresses without a user name may be fetched.")
        port = _PORTS[parts.scheme] if port is None else port
        if any(_origin(urlsplit(o)) == (parts.scheme, host, port) for o in self.operator_origins):
            return parts.scheme, host, port, True
        if self.any_public_host and parts.scheme == "https" and port == _PORTS["https"]:
            return parts.scheme, host, port, False
        if port != _PORTS[parts.scheme] or not any(_matches(pattern, host) for pattern in self.hosts):
            raise EgressRefusedError(f"The host {host[:100]} is not one that this agent may reach.")
        return parts.scheme, host, port, False

    async def _get(self, url: str) -> tuple[Page, str | None]:
        *_, private = self.check(url)
        headers = [("User-Agent", "sovereign-tool"), ("Accept-Encoding", "identity"), ("Accept", "*/*")]
        async with (
            self._pool(private) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            got = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
            if response.status in _REDIRECTS and "location" in got:
                return Page(url, response.status, "", ""), got["location"]
            if got.get("content-encoding", "identity") != "identity":
                raise EgressRefusedError("The page is compressed, though it was asked for as it is.")
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                if len(body) > MAX_PAGE_BYTES:
                    break
        text = bytes(body[:MAX_PAGE_BYTES]).decode("utf-8", "replace")
        return Page(url, response.status, got.get("content-type", ""), text), None

    def _pool(self, private: bool) -> httpcore.AsyncConnectionPool:
        backend = _CheckedBackend(self.resolve, private)
        return httpcore.AsyncConnectionPool(ssl_context=self.tls, network_backend=backend, max_connections=1, retries=0)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to an address that was checked, for the name that was asked for; TLS still verifies the name."""

    def __init__(self, resolve: Resolver, private: bool) -> None:
        self._resolve = resolve
        self._private = private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = list(await self._resolve(host, port))
        if not addresses:
            raise EgressRefusedError(f"The host {host[:100]} has no address.")
        # All of them: one public address beside a private one is how rebinding begins.
        for address in addresses:
            if not self._private and not is_public(address):
                raise EgressRefusedError(f"The host {host[:100]} is at an address that is not public.")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise EgressRefusedError("No local socket may be fetched from.")


def is_public(address: str) -> bool:
    """Return whether `address` is a unicast address of the public internet, whatever other address it wraps."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64 or int(ip) >> 32 == 0:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").rstrip(".").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _matches(pattern: str, host: str) -> bool:
    pattern = pattern.lower().rstrip(".")
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
