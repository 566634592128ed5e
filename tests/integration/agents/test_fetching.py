"""Fetching from a real server on loopback: the checked address is used, redirects are checked, pages are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.agents import egress
from cluster.agents.egress import EgressPolicy, EgressRefusedError

Answer = Callable[[str], bytes]


class Server:
    """Answers each path with the bytes that `answer` gives, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pages: dict[str, bytes] = {}
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        self.asked.append(head)
        page = self.pages.get(path)
        if page is None:
            await reader.read()  # never answers
        else:
            writer.write(page)
            await writer.drain()
        writer.close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def page(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()


@pytest.fixture
def policy(server: Server) -> EgressPolicy:
    return EgressPolicy(("*.wiki.example",), operator_origins=(server.origin,))


async def test_the_operators_endpoint_may_be_private(server: Server, policy: EgressPolicy) -> None:
    """The one origin that the operator set is reached, with its name in the request; another port of the same host is not."""
    server.pages["/x?q=1"] = page(b"found", Content_Type="text/plain")
    got = await policy.fetch(f"{server.origin}/x?q=1")
    assert (got.status, got.text, got.content_type) == (200, "found", "text/plain")
    assert f"Host: 127.0.0.1:{server.port}" in server.asked[0]
    with pytest.raises(EgressRefusedError):
        await policy.fetch(f"http://127.0.0.1:{server.port + 1}/x")


async def test_a_name_is_resolved_once_and_the_checked_address_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: _CheckedBackend. A name server that changes its answer after the check changes nothing: it is not asked again."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
    connected: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        return next(answers)

    class Connection:
        async def connect_tcp(self, host: str, *_: object) -> None:
            connected.append(host)
            raise OSError("no such route")

    monkeypatch.setattr("cluster.agents.egress.httpcore.AnyIOBackend", Connection)
    with pytest.raises(EgressRefusedError, match="no such route"):
        await EgressPolicy(("a.wiki.example",), resolve=resolve).fetch("http://a.wiki.example/")
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/meta-data", "http://localhost/", "https://evilwiki.example/", "file:///etc/passwd"],
)
async def test_a_redirect_is_checked_like_a_first_request(server: Server, policy: EgressPolicy, location: str) -> None:
    """Control: the check in EgressPolicy._get. A redirect to a private or undeclared host is refused."""
    server.pages["/go"] = page(b"", "302 Found", Location=location)
    with pytest.raises(EgressRefusedError, match=r"not one that this agent may reach|Only http"):
        await policy.fetch(f"{server.origin}/go")
    assert len(server.asked) == 1


async def test_a_redirect_within_the_origin_is_followed_a_few_times(server: Server, policy: EgressPolicy) -> None:
    """A chain of redirects ends."""
    server.pages["/a"] = page(b"", "301 Moved", Location="/b")
    server.pages["/b"] = page(b"end")
    assert (await policy.fetch(f"{server.origin}/a")).text == "end"
    server.pages["/loop"] = page(b"", "302 Found", Location="/loop")
    with pytest.raises(EgressRefusedError, match="redirects more than 3 times"):
        await policy.fetch(f"{server.origin}/loop")


async def test_a_page_is_cut_and_never_unpacked(server: Server, policy: EgressPolicy) -> None:
    """A page larger than the bound is cut; one that comes compressed unasked is refused."""
    server.pages["/big"] = page(b"x" * (egress.MAX_PAGE_BYTES * 4))
    assert len((await policy.fetch(f"{server.origin}/big")).text) == egress.MAX_PAGE_BYTES
    server.pages["/bomb"] = page(b"\x1f\x8b" * 100, Content_Encoding="gzip")
    with pytest.raises(EgressRefusedError, match="compressed"):
        await policy.fetch(f"{server.origin}/bomb")


async def test_a_server_that_does_not_answer_is_given_up(
    server: Server, policy: EgressPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence and nonsense are refusals with a reason."""
    monkeypatch.setattr(egress, "FETCH_TIMEOUT_S", 0.1)
    with pytest.raises(EgressRefusedError, match=r"longer than 0\.1 s"):
        await policy.fetch(f"{server.origin}/silent")
    server.pages["/odd"] = b"SSH-2.0-OpenSSH\r\n\r\n"
    with pytest.raises(EgressRefusedError, match="cannot be fetched"):
        await policy.fetch(f"{server.origin}/odd")
