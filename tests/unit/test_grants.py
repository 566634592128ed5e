"""The grant of a call: what it proves, and everything that it must not be mistaken for."""

from __future__ import annotations

import pickle
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import FakeClock
from cluster.errors import GrantRefusedError, StaleGenerationError
from cluster.identity.grants import (
    MAX_TICKET_BYTES,
    GrantVerifier,
    Refusal,
    SessionGrant,
    Ticket,
    derive_agent_key,
    issue_ticket,
)
from cluster.identity.replay_window import ReplayWindow
from tests.sizes import soak

MASTER = b"m" * 32
KEY = derive_agent_key(MASTER, "acme", "planner", 3)
SECOND = 1_000_000
HEAD = struct.Struct("!8sQQ32s")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def verifier(clock: FakeClock, **changes: Any) -> GrantVerifier:
    words: dict[str, Any] = {"tenant": "acme", "agent": "planner", "generation": 3}
    return GrantVerifier(changes.pop("key", KEY), clock=clock, **(words | changes))


def holder(clock: FakeClock, **changes: Any) -> SessionGrant:
    words: dict[str, Any] = {"caller": "gateway-1", "tenant": "acme", "agent": "planner", "generation": 3, "ttl_s": 600.0}
    return issue_ticket(changes.pop("key", KEY), clock=clock, **(words | changes))


def check(v: GrantVerifier, grant: bytes, payload: bytes = b"hello", deadline_ms: int = 1000, flags: int = 0) -> Ticket | Refusal:
    return v.check(grant, payload, deadline_ms=deadline_ms, flags=flags)


def sign(g: SessionGrant, payload: bytes = b"hello", deadline_ms: int = 1000, flags: int = 0) -> bytes:
    return g.sign(payload, deadline_ms=deadline_ms, flags=flags)


def with_head(grant: bytes, **changes: Any) -> bytes:
    head = dict(zip(("nonce", "counter", "issued_us", "mac"), HEAD.unpack_from(grant), strict=True))
    return HEAD.pack(*(head | changes).values()) + grant[HEAD.size :]


def test_a_true_grant_names_its_caller(clock: FakeClock) -> None:
    """What the verifier hands on is the issuer's word: caller, tenant, agent, scope, generation and expiry."""
    g = holder(clock)
    ticket = verifier(clock).verify(sign(g), b"hello", deadline_ms=1000, flags=0)
    assert ticket == g.ticket
    assert (ticket.caller, ticket.tenant, ticket.agent, ticket.scope, ticket.generation) == (
        "gateway-1", "acme", "planner", "call", 3,
    )  # fmt: skip


def test_keys_differ_by_every_part_of_the_derivation() -> None:
    """Another tenant, agent, generation or master secret gives another key, and names that would blur the parts are refused."""
    keys = {
        derive_agent_key(m, t, a, g)
        for m in (MASTER, b"n" * 32)
        for t in ("acme", "acm")
        for a in ("planner", "eplanner")
        for g in (3, 4)
    }
    assert len(keys) == 16
    for bad in (("acme|x", "planner"), ("acme", "pl|anner"), ("", "planner"), ("acme", "../planner")):
        with pytest.raises(ValueError):
            derive_agent_key(MASTER, *bad, 1)
    with pytest.raises(ValueError):
        derive_agent_key(b"short", "acme", "planner", 1)


def test_key_derivation_is_hkdf_sha256() -> None:
    """RFC 5869 computed by hand gives the same key, so another implementation can derive it too."""
    import hashlib
    import hmac

    info = b"sovereign/agent-key/1|acme|planner|3"
    extracted = hmac.digest(b"\0" * 32, MASTER, hashlib.sha256)
    assert hmac.digest(extracted, info + b"\x01", hashlib.sha256) == KEY


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mac", {"mac": b"\0" * 32}),
        ("counter", {"counter": 2}),
        ("time", {"issued_us": 1_790_000_000_000_001}),
        ("nonce", {"nonce": b"\0" * 8}),
    ],
)
def test_threat_15_a_changed_word_of_the_grant_is_refused(clock: FakeClock, name: str, change: dict[str, Any]) -> None:
    """Every part of a grant is under its mac. Control: the comparison in GrantVerifier.check."""
    assert check(verifier(clock), with_head(sign(holder(clock)), **change)) is Refusal.FORGED


def test_threat_15_a_swapped_body_deadline_or_flag_is_refused(clock: FakeClock) -> None:
    """A valid mac holds for one payload, one deadline and one set of flags. Control: what _mac covers."""
    v, g = verifier(clock), holder(clock)
    grant = sign(g)
    assert check(v, grant, payload=b"hellO") is Refusal.FORGED
    assert check(v, grant, deadline_ms=1001) is Refusal.FORGED
    assert check(v, grant, flags=1) is Refusal.FORGED
    assert isinstance(check(v, grant), Ticket), "the refused tries did not use it up"


def test_threat_14_a_replayed_grant_is_refused(clock: FakeClock) -> None:
    """The same frame a second time is a replay, at once or after other calls. Control: ReplayWindow.take."""
    v, g = verifier(clock), holder(clock)
    first, second, third = sign(g), sign(g), sign(g)
    assert isinstance(check(v, first), Ticket)
    assert check(v, first) is Refusal.REPLAYED
    assert isinstance(check(v, third), Ticket)
    assert isinstance(check(v, second), Ticket), "out of order within the window is no replay"
    assert [check(v, x) for x in (first, second, third)] == [Refusal.REPLAYED] * 3


def test_threat_14_a_grant_from_before_a_restart_is_refused(clock: FakeClock) -> None:
    """A restarted agent is a new generation with a new key, so its empty memory of counters is no hole."""
    grant = sign(holder(clock))
    restarted = verifier(clock, key=derive_agent_key(MASTER, "acme", "planner", 4), generation=4)
    with pytest.raises(StaleGenerationError):
        restarted.verify(grant, b"hello", deadline_ms=1000, flags=0)


def test_threat_16_a_stale_or_future_grant_is_refused(clock: FakeClock) -> None:
    """The time of signing must be within 60 s of now, both ways. Control: GrantVerifier._refuses."""
    v, g = verifier(clock), holder(clock)
    stale, edge = sign(g), sign(g)
    clock.advance(60 * SECOND)
    assert isinstance(check(v, edge), Ticket)
    clock.advance(1)
    assert check(v, stale) is Refusal.STALE
    early = FakeClock(clock.now_us() + 60 * SECOND + 1)
    ahead = SessionGrant(g.ticket_bytes, g.session_key, early)
    assert check(v, sign(ahead)) is Refusal.FUTURE
    clock.advance(1)
    assert isinstance(check(v, sign(ahead)), Ticket)


def test_an_expired_ticket_is_refused_at_its_microsecond(clock: FakeClock) -> None:
    """A ticket holds until its expiry and not at it."""
    v, g = verifier(clock), holder(clock, ttl_s=10)
    clock.advance(10 * SECOND - 1)
    assert isinstance(check(v, sign(g)), Ticket)
    clock.advance(1)
    assert check(v, sign(g)) is Refusal.EXPIRED


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ({"agent": "other"}, Refusal.OTHER_AGENT),
        ({"tenant": "evil"}, Refusal.OTHER_AGENT),
        ({"generation": 2}, Refusal.OTHER_GENERATION),
        ({"generation": 4}, Refusal.OTHER_GENERATION),
        ({"scope": "status"}, Refusal.SCOPE),
    ],
)
def test_a_ticket_for_something_else_is_refused(clock: FakeClock, words: dict[str, Any], refusal: Refusal) -> None:
    """Even a ticket under this agent's own key holds only for its tenant, agent, generation and scope."""
    assert check(verifier(clock), sign(holder(clock, **words))) is refusal


def test_a_ticket_of_another_agents_key_is_refused(clock: FakeClock) -> None:
    """A caller that may call one agent cannot write itself a ticket for another."""
    other = derive_agent_key(MASTER, "acme", "writer", 3)
    assert check(verifier(clock), sign(holder(clock, key=other))) is Refusal.FORGED
    assert check(verifier(clock), sign(holder(clock, key=other, agent="writer"))) is Refusal.OTHER_AGENT


def test_a_widened_ticket_is_refused(clock: FakeClock) -> None:
    """Editing any word of the ticket changes the session key that the agent derives from it."""
    g = holder(clock, scope="status")
    t = g.ticket
    for changes in ({"scope": "call"}, {"expires_us": t.expires_us + 1}, {"caller": "root"}):
        words = {f: getattr(t, f) for f in Ticket.__slots__} | {"scope": "call"} | changes
        forged = SessionGrant(Ticket(**words).to_bytes(), g.session_key, clock)
        assert check(verifier(clock), sign(forged)) is Refusal.FORGED


def test_refusals_speak_in_generic_words(clock: FakeClock) -> None:
    """What went wrong is for the audit log; the caller learns only whether to ask the directory again."""
    v, g = verifier(clock), holder(clock)
    grant = sign(g)
    check(v, grant)
    told = set()
    for bad in (
        grant,
        with_head(grant, mac=b"\0" * 32),
        b"",
        sign(holder(clock, scope="status")),
        sign(holder(clock, agent="x")),
    ):
        with pytest.raises(GrantRefusedError) as refused:
            v.verify(bad, b"hello", deadline_ms=1000, flags=0)
        told.add(str(refused.value))
    (words,) = told
    assert not any(word in words for word in ("mac", "replay", "expired", "planner", "acme"))


def test_two_holders_of_one_ticket_do_not_collide(clock: FakeClock) -> None:
    """A copy that came by pickle signs under its own nonce, so both may count from one."""
    v, g = verifier(clock), holder(clock)
    copy = pickle.loads(pickle.dumps(g))
    copy._clock = clock
    for _ in range(3):
        assert isinstance(check(v, sign(g)), Ticket)
        assert isinstance(check(v, sign(copy)), Ticket)


def test_a_grant_does_not_show_its_key(clock: FakeClock) -> None:
    """Neither repr nor str of a holder contains the session key."""
    g = holder(clock)
    assert g.session_key.hex() not in repr(g)
    assert repr(g.session_key) not in repr(g) + str(g)


def test_threads_never_sign_with_the_same_counter(clock: FakeClock) -> None:
    """Signing from several threads at once uses every counter once."""
    g = holder(clock)
    signed: list[int] = []

    def work() -> None:
        signed.extend(HEAD.unpack_from(sign(g))[1] for _ in range(soak(500, 20_000)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(signed) == list(range(1, len(signed) + 1))


def test_a_full_table_fails_closed_and_frees_itself_safely(clock: FakeClock) -> None:
    """One holder too many is refused until an old one's frames are all too old, and those stay refused afterwards."""
    v = verifier(clock, max_sessions=2)
    old = sign(holder(clock))
    assert isinstance(check(v, old), Ticket)
    clock.advance(30 * SECOND)
    busy, late = holder(clock), holder(clock)
    assert isinstance(check(v, sign(busy)), Ticket)
    assert check(v, sign(late)) is Refusal.SESSIONS_FULL
    assert isinstance(check(v, sign(busy)), Ticket), "who is in the table goes on"
    clock.advance(31 * SECOND)
    assert isinstance(check(v, sign(late)), Ticket)
    assert isinstance(check(v, sign(busy)), Ticket)
    assert check(v, old) is Refusal.STALE


def test_a_clock_set_back_does_not_revive_forgotten_frames(clock: FakeClock) -> None:
    """After a holder was forgotten its frames are refused also when the clock says they are fresh again."""
    v = verifier(clock, max_sessions=1)
    grant = sign(holder(clock))
    assert isinstance(check(v, grant), Ticket)
    clock.advance(61 * SECOND)
    assert isinstance(check(v, sign(holder(clock))), Ticket), "which forgets the first holder"
    clock.advance(-61 * SECOND)
    assert check(v, grant) is Refusal.STALE


def test_unproven_tickets_take_no_memory(clock: FakeClock) -> None:
    """Made-up tickets leave nothing behind, so nobody fills the tables without a key."""
    v = verifier(clock)
    for _ in range(100):
        assert check(v, sign(holder(clock, key=b"x" * 32))) is Refusal.FORGED
    assert not v._tickets
    assert not v._sessions


def test_a_ticket_too_long_is_not_issued(clock: FakeClock) -> None:
    """A ticket that no verifier would read is refused where it is made."""
    with pytest.raises(ValueError, match="1024"):
        holder(clock, caller="c" * MAX_TICKET_BYTES)


@given(data=st.binary(max_size=300))
@settings(max_examples=soak(200, 20_000), deadline=None)
def test_random_bytes_are_never_a_grant(data: bytes) -> None:
    """Whatever bytes come, the answer is a refusal and never an exception."""
    clock = FakeClock()
    assert isinstance(check(verifier(clock), data), Refusal)
    assert isinstance(check(verifier(clock), HEAD.pack(b"n" * 8, 1, clock.now_us(), b"m" * 32) + data), Refusal)


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=soak(200, 20_000), deadline=None)
def test_any_changed_byte_refuses_a_grant(at: int, flip: int) -> None:
    """Flipping bits of any one byte of a true grant makes it false."""
    clock = FakeClock()
    grant = bytearray(sign(holder(clock)))
    grant[at % len(grant)] ^= flip
    assert isinstance(check(verifier(clock), bytes(grant)), Refusal)


@given(
    size=st.integers(1, 70),
    counters=st.lists(st.one_of(st.integers(0, 200), st.integers(0, 2**64 - 1)), max_size=200),
)
@settings(max_examples=soak(200, 20_000), deadline=None)
def test_the_window_accepts_each_counter_at_most_once(size: int, counters: list[int]) -> None:
    """Against a plain set: no counter twice, none behind the window, every new one inside it; memory stays `size` bits."""
    window = ReplayWindow(size)
    used: set[int] = set()
    for c in counters:
        highest = max(used, default=0)
        expected = c > 0 and c not in used and highest - c < size
        assert window.take(c) is expected
        if expected:
            used.add(c)
        assert window._bits.bit_length() <= size
