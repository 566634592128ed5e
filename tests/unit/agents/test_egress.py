"""What may be fetched: names, addresses, redirects, sizes. The network is a resolver and a server of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.agents.egress import EgressPolicy, EgressRefusedError, is_public


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("*.wiki.example", "en.wiki.example", True),
        ("*.wiki.example", "a.b.wiki.example", True),
        ("*.wiki.example", "evilwiki.example", False),
        ("*.wiki.example", "wiki.example", False),
        ("*.wiki.example", ".wiki.example", False),
        ("*.wiki.example", "en.wiki.example.evil.example", False),
        ("wiki.example", "wiki.example", True),
        ("wiki.example", "WIKI.example.", True),
        ("wiki.example", "en.wiki.example", False),
        ("wiki.example", "wikiXexample", False),
    ],
)
def test_host_patterns(pattern: str, host: str, allowed: bool) -> None:
    """Control: egress._matches. `*.name` is any name below it and nothing that merely ends in the same letters."""
    policy = EgressPolicy((pattern,))
    if allowed:
        assert policy.check(f"https://{host}/x")[3] is False
    else:
        with pytest.raises(EgressRefusedError, match=r"not one that this agent may reach|user name|names no host"):
            policy.check(f"https://{host}/x")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://wiki.example/",
        "file:///etc/passwd",
        "gopher://wiki.example/",
        "//wiki.example/",
        "wiki.example",
        "http://user:pw@wiki.example/",
        "http://wiki.example@evil.example/",
        "http://evil.example\\@wiki.example/",
        "http://wiki.example:8080/",
        "http://wiki.example:99999/",
        "http://wiki.example/\r\nHost: evil",
        "http://wiki.example /",
        "http://wikı.example/",
        "http://[::1/",
        "http://" + "a" * 3000,
        "http:///x",
        "",
    ],
)
def test_addresses_that_are_no_plain_urls_are_refused(url: str) -> None:
    """Only http and https, on their usual ports, without tricks in the address."""
    with pytest.raises(EgressRefusedError):
        EgressPolicy(("wiki.example",)).check(url)


def test_nothing_is_allowed_unless_said() -> None:
    """An empty policy refuses every host."""
    with pytest.raises(EgressRefusedError):
        EgressPolicy().check("https://wiki.example/")


NOT_PUBLIC = """
127.0.0.1 127.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:10.0.0.1
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2002:a9fe:a9fe:: ::7f00:1 2001:db8::1 nonsense 2130706433
fec0::1 feff::1 fec0::1%eth0 192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.170 192.88.99.1 192.88.99.255 3fff::1 3fff:fff:ffff::1
::ffff:192.0.0.8 ::ffff:192.88.99.1 64:ff9b::c000:8 2002:c058:6301:: 64:ff9b:1::7f00:1 2001:20::1 100::1 5f00::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public_are_known(address: str) -> None:
    """Control: egress.is_public. Loopback, private, link-local, metadata, multicast, and all of them wrapped in IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"])
def test_public_addresses_are_known(address: str) -> None:
    """The internet stays reachable."""
    assert is_public(address)


@given(st.text())
def test_no_text_breaks_the_check(text: str) -> None:
    """Whatever is asked for is refused in the same way."""
    with pytest.raises(EgressRefusedError):
        EgressPolicy(("wiki.example",)).check("http://" + text + "@/")


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("meta.wiki.example", ["169.254.169.254"]),
        ("local.wiki.example", ["::ffff:127.0.0.1"]),
        ("mixed.wiki.example", ["93.184.216.34", "127.0.0.1"]),
        ("none.wiki.example", []),
    ],
)
async def test_a_name_at_a_private_address_is_refused(host: str, addresses: list[str]) -> None:
    """Control: _CheckedBackend.connect_tcp. An allowed name that resolves to a private address is not connected to."""

    async def resolve(name: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(EgressRefusedError, match=r"not public|no address"):
        await EgressPolicy(("*.wiki.example",), resolve=resolve).fetch(f"http://{host}/")


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://localhost/", "http://2130706433/", "http://0x7f.1/", "http://[::ffff:7f00:1]/"]
)
async def test_an_address_in_the_policy_is_checked_too(url: str) -> None:
    """Even a host that the policy names, in whatever spelling, must be at a public address."""
    policy = EgressPolicy(("169.254.169.254", "localhost", "2130706433", "0x7f.1", "::ffff:7f00:1"))
    with pytest.raises(EgressRefusedError, match="not public"):
        await policy.fetch(url)
