"""Keys of both issuers: one suite over the embedded one and another's over HTTP, and what a bad network may do to the latter."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import Key, OKPKey

from cluster.clock import FakeClock
from cluster.errors import ConfigurationError, UnauthenticatedError
from cluster.identity import remote_key_set
from cluster.identity.access_tokens import TokenRefusedError
from cluster.identity.embedded_key_set import KEPT_S
from cluster.identity.key_set import ALGORITHMS, IssuerAwayError
from cluster.identity.remote_key_set import MAX_BYTES, REFETCH_US, REFRESH_US, RemoteKeySet, check_url
from tests.sizes import soak
from tests.tokens import ED, THEIRS, Identity, jwks, sign

SECOND = 1_000_000
MAX_AGE_S = 3600


class Issuer(ThreadingHTTPServer):
    """Another issuer on loopback, which answers as a test says."""

    daemon_threads = True
    # Closed at once, whatever its clients still wait for.
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []
        self.keys: list[Key] = [ED]
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.well
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/jwks"

    def well(self, request: BaseHTTPRequestHandler) -> None:
        send(request, 200, json.dumps(jwks(*self.keys)).encode())

    def handle_error(self, *_: Any) -> None:
        pass


class _Answers(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, *_: Any) -> None:
        pass


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in ({"content-length": str(len(body))} | headers).items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def serving() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        issuer.ended.set()
        issuer.shutdown()
        issuer.server_close()
        thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving() as issuer:
        yield issuer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def remote(issuer: Issuer, clock: FakeClock) -> RemoteKeySet:
    return RemoteKeySet(issuer.url, THEIRS, clock, algorithms=ALGORITHMS, max_age_s=MAX_AGE_S)


@pytest.fixture
def identity(tmp_path: Path, clock: FakeClock, remote: RemoteKeySet) -> Iterator[Identity]:
    identity = Identity(tmp_path, clock, remote)
    yield identity
    identity.close()


def look(keys: RemoteKeySet, key_id: str = str(ED.kid)) -> bool:
    """Find a key as a gateway does: once more when the fetch that was begun is over."""
    try:
        return keys.find(key_id) is not None
    except IssuerAwayError as away:
        if away.fetch is None:
            raise
        away.fetch.result(30)
        return keys.find(key_id) is not None


class Both:
    """A token of each issuer, and its keys rotated."""

    def __init__(self, identity: Identity, issuer: Issuer, which: str) -> None:
        self._identity, self._issuer, self._ours = identity, issuer, which == "embedded"

    def token(self) -> str:
        identity, key = self._identity, self._issuer.keys[-1]
        if self._ours:
            _, api_key = identity.api_key()
            return identity.issue(api_key, scopes=None, life_s=None).text
        return sign(identity.header(key), identity.claims(), key)

    def rotate(self) -> None:
        if self._ours:
            self._identity.keys.rotate()
        else:
            self._issuer.keys.append(OKPKey.generate_key("Ed25519", {"alg": "Ed25519"}, auto_kid=True))

    def forget_old(self) -> None:
        if not self._ours:
            del self._issuer.keys[0]
        self._identity.clock.advance(KEPT_S * SECOND)


@pytest.fixture(params=["embedded", "external"])
def both(request: pytest.FixtureRequest, identity: Identity, issuer: Issuer) -> Both:
    return Both(identity, issuer, request.param)


def takes(identity: Identity, token: str) -> bool:
    try:
        identity.verifier.verify_waiting(token)
    except TokenRefusedError:
        return False
    return True


class TestEachIssuer:
    def test_its_tokens_are_taken_and_a_strangers_are_not(self, identity: Identity, both: Both) -> None:
        """The signature counts, and the key id that it came with."""
        token = both.token()
        assert takes(identity, token)
        assert not takes(identity, token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"))
        stranger = OKPKey.generate_key("Ed25519", {"alg": "Ed25519"}, auto_kid=True)
        assert not takes(identity, sign(identity.header(stranger), identity.claims(), stranger))
        assert not takes(identity, sign(identity.header(stranger, kid=ED.kid), identity.claims(), stranger))

    def test_after_a_rotation_old_and_new_tokens_are_taken(self, identity: Identity, both: Both) -> None:
        """A new key is found at once, and the old one's tokens go on to their end."""
        old = both.token()
        assert takes(identity, old)
        both.rotate()
        identity.clock.advance(REFETCH_US)
        assert takes(identity, both.token())
        assert takes(identity, old)

    def test_a_key_that_was_taken_away_ends(self, identity: Identity, both: Both) -> None:
        """Once nobody can have a token of it any more."""
        old = both.token()
        assert takes(identity, old)
        both.rotate()
        both.forget_old()
        identity.clock.advance(REFRESH_US)
        assert takes(identity, both.token())
        assert not takes(identity, old)

    def test_many_at_once_are_all_taken(self, identity: Identity, both: Both) -> None:
        """From the first moment on, by many threads."""
        tokens = [both.token() for _ in range(32)]
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda token: takes(identity, token), tokens))


def test_unknown_key_ids_ask_the_issuer_seldom(issuer: Issuer, remote: RemoteKeySet, clock: FakeClock) -> None:
    """A flood of tokens with made-up key ids is one fetch in ten seconds, and does not disturb those that are known."""
    assert look(remote)
    for i in range(soak(200, 5_000)):
        assert not look(remote, f"made-up-{i}")
    assert len(issuer.asked) == 1
    clock.advance(REFETCH_US)
    for i in range(200):
        assert not look(remote, f"made-up-{i}")
    assert len(issuer.asked) == 2
    assert look(remote)


def test_many_that_wait_for_keys_share_one_fetch(issuer: Issuer, remote: RemoteKeySet) -> None:
    """The first calls of a gateway come together; nobody of them is refused for the others."""
    go = threading.Event()

    def late(request: BaseHTTPRequestHandler) -> None:
        go.wait(30)
        issuer.well(request)

    issuer.answer = late
    with ThreadPoolExecutor(16) as pool:
        looks = [pool.submit(look, remote) for _ in range(16)]
        go.set()
        assert all(each.result(30) for each in looks)
    assert len(issuer.asked) == 1


def test_keys_serve_while_the_issuer_is_away_and_then_no_more(issuer: Issuer, remote: RemoteKeySet, clock: FakeClock) -> None:
    """To the bound that is set; after it everything of that issuer is refused, until it is back."""
    assert look(remote)
    issuer.answer = lambda request: send(request, 503, b"")
    step_s = 300
    for _ in range(MAX_AGE_S // step_s - 1):
        clock.advance(step_s * SECOND)
        assert look(remote)
        assert not look(remote, "nobody's")  # waits for the fetch that goes on beside
    clock.advance(step_s * SECOND)
    with pytest.raises(IssuerAwayError) as away:
        look(remote)
    assert (away.value.status, away.value.retry_after_s) == (503, 10)
    with pytest.raises(IssuerAwayError) as soon:
        remote.find(str(ED.kid))
    assert soon.value.fetch is None, "asked again too soon"
    issuer.answer = issuer.well
    clock.advance(REFETCH_US)
    assert look(remote)


def test_old_keys_are_fetched_anew_beside_the_calls(issuer: Issuer, remote: RemoteKeySet, clock: FakeClock) -> None:
    """Nobody waits for it: the call has its answer while the issuer still thinks."""
    assert look(remote)
    go, over = threading.Event(), threading.Event()

    def late(request: BaseHTTPRequestHandler) -> None:
        go.wait(30)
        issuer.well(request)
        over.set()

    issuer.answer = late
    clock.advance(REFRESH_US)
    assert remote.find(str(ED.kid)) is not None
    go.set()
    assert over.wait(30)
    assert len(issuer.asked) == 2


def redirect(request: BaseHTTPRequestHandler) -> None:
    send(request, 302, b"", location="/elsewhere")


def compressed(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, gzip.compress(json.dumps(jwks(ED)).encode()), content_encoding="gzip")


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" " * 65_536)


@pytest.mark.parametrize(
    "answer",
    [
        redirect,
        compressed,
        endless,
        lambda request: send(request, 200, json.dumps(jwks(ED)).encode() + b" " * MAX_BYTES),
        lambda request: send(request, 200, b"<html>"),
        lambda request: send(request, 200, b"{}"),
        lambda request: send(request, 200, b'{"keys": []}'),
        lambda request: send(request, 200, b'{"keys": [], "keys": []}'),
        lambda request: send(request, 200, b"[" * 10_000),
        lambda request: send(request, 204, b""),
        lambda request: send(request, 404, json.dumps(jwks(ED)).encode()),
        lambda request: request.connection.shutdown(socket.SHUT_RDWR),
    ],
    ids=["redirect", "gzip", "endless", "large", "html", "no keys", "empty", "twice", "deep", "204", "404", "cut"],
)
def test_what_is_no_key_set_gives_no_keys(
    issuer: Issuer, remote: RemoteKeySet, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    """Nothing is followed, unpacked or guessed, and at most so much is read."""
    issuer.answer = answer
    with pytest.raises(IssuerAwayError):
        look(remote)
    assert issuer.asked == ["/jwks"]


def test_an_issuer_that_drips_is_given_up(
    issuer: Issuer, remote: RemoteKeySet, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then holds the fetch no longer than its time."""
    monkeypatch.setattr(remote_key_set, "TIMEOUT_S", 0.2)

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not issuer.ended.wait(0.02):
            request.wfile.write(b" ")

    issuer.answer = drip
    with pytest.raises(IssuerAwayError):
        look(remote)


def test_an_issuer_that_is_not_there_is_waited_for(identity: Identity, remote: RemoteKeySet, issuer: Issuer) -> None:
    """Ours goes on; the other's tokens are a 503 with a time to come back, and not a 401 that sends clients to log in."""
    _, key = identity.api_key()
    ours = identity.issue(key, scopes=None, life_s=None).text
    issuer.answer = lambda request: request.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(IssuerAwayError):
        identity.verifier.verify_waiting(sign(identity.header(ED), identity.claims(), ED, alg="Ed25519"))
    assert identity.authenticator.authenticate(f"Bearer {ours}") == key.principal
    with pytest.raises(UnauthenticatedError):
        identity.authenticator.authenticate("Bearer nonsense")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://login.example/jwks",
        "http://169.254.169.254/jwks",
        "http://127.0.0.1.evil.example/jwks",
        "http://127.0.0.1@evil.example/jwks",
        "https://user:secret@login.example/jwks",
        "file:///etc/passwd",
        "ftp://127.0.0.1/jwks",
        "https:///jwks",
        "//login.example/jwks",
    ],
)
def test_keys_come_by_https_or_from_this_machine(url: str) -> None:
    """Anything else is refused at start, and what it says is not quoted: it may hold a password."""
    with pytest.raises(ConfigurationError) as refused:
        check_url(url)
    assert "secret" not in str(refused.value)
    for good in ("https://login.example/jwks", "http://127.0.0.1:8080/jwks", "http://[::1]/jwks", "http://localhost:1/jwks"):
        assert check_url(good) == good
