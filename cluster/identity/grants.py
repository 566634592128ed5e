"""Call grants: how an agent knows, without asking anyone, that a call frame comes from a caller that was let in.

    agent key   = HKDF-SHA256(cluster's master secret, tenant | agent | generation)   held by the directory and the agent
    session key = HMAC-SHA256(agent key, ticket)                                      handed out with the ticket
    mac         = HMAC-SHA256(session key, domain | nonce | counter | time | deadline | flags | SHA-256(payload))

The agent derives the session key again from the ticket that travels with each call, so it needs no list of sessions to
tell a true grant from a false one; it only remembers which counters it has seen. A restarted agent is a new generation
with a new key, so no frame recorded before the restart holds after it.
"""

from __future__ import annotations

import hmac
import itertools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

import msgpack

from cluster.clock import Clock, SystemClock
from cluster.errors import GrantRefusedError, SovereignError, StaleGenerationError
from cluster.identity.ids import AgentId, TenantId, uuid7
from cluster.identity.replay_window import ReplayWindow

KEY_BYTES = 32
MAX_TICKET_BYTES = 1024
_DOMAIN = b"sovereign/call-grant/1\0"
# nonce of the holder, counter, time of signing in microseconds since 1970, mac; the ticket follows.
_WIRE = struct.Struct("!8sQQ32s")
# what the mac covers beside the domain: nonce, counter, time, deadline in ms, flags, digest of the payload.
_SIGNED = struct.Struct("!8sQQIB32s")


class Refusal(StrEnum):
    """Why a grant was refused, as the audit fact names it. The caller is told only what it needs to retry."""

    MALFORMED = "grant:malformed"
    FORGED = "grant:forged"
    OTHER_AGENT = "grant:other_agent"
    OTHER_GENERATION = "grant:other_generation"
    SCOPE = "grant:scope"
    EXPIRED = "grant:expired"
    STALE = "grant:stale"
    FUTURE = "grant:future"
    REPLAYED = "grant:replayed"
    SESSIONS_FULL = "grant:sessions_full"

    def error(self) -> SovereignError:
        """Return the error a caller gets: generic words, so that a forger learns nothing from them."""
        if self is Refusal.OTHER_GENERATION:
            return StaleGenerationError(
                "The agent's process was replaced since this grant was issued.", hint="Ask the directory again and retry."
            )
        return GrantRefusedError("The call grant does not hold.", hint="Resolve the agent again for a fresh grant.")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who may call which generation of which agent, for what and until when."""

    ticket_id: str
    caller: str
    tenant: str
    agent: str
    scope: str
    generation: int
    expires_us: int

    def to_bytes(self) -> bytes:
        """Return the one byte form of this ticket (msgpack array, fields in order)."""
        fields = [self.ticket_id, self.caller, self.tenant, self.agent, self.scope, self.generation, self.expires_us]
        packed: bytes = msgpack.packb(fields)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Ticket:
        """Return the ticket that `to_bytes` wrote; raises ValueError when `data` is anything else."""
        if len(data) > MAX_TICKET_BYTES:
            raise ValueError("a ticket is at most 1024 bytes")
        fields: Any = msgpack.unpackb(data)
        if type(fields) is not list or [type(f) for f in fields] != [str, str, str, str, str, int, int]:
            raise ValueError("not a ticket")
        return cls(*fields)


class SessionGrant:
    """A ticket and its session key, held by a caller: signs each call once, from any thread or task.

    Every holder (also a copy that came by pickle) draws its own nonce, so that counters of two holders never collide.
    """

    __slots__ = ("_clock", "_counter", "_nonce", "session_key", "ticket_bytes")

    def __init__(self, ticket_bytes: bytes, session_key: bytes, clock: Clock | None = None) -> None:
        self.ticket_bytes = ticket_bytes
        self.session_key = session_key
        self._clock = clock or SystemClock()
        self._nonce = os.urandom(8)
        # next() on it is one atomic step, so no two calls share a number.
        self._counter = itertools.count(1)

    def __reduce__(self) -> tuple[Any, ...]:
        return SessionGrant, (self.ticket_bytes, self.session_key)

    def __repr__(self) -> str:
        return f"SessionGrant({self.ticket!r})"  # never the key

    @property
    def ticket(self) -> Ticket:
        """The ticket in its parts."""
        return Ticket.from_bytes(self.ticket_bytes)

    def sign(self, payload: bytes, *, deadline_ms: int, flags: int) -> bytes:
        """Return the grant of one call: its payload, `deadline_ms` (0 to 2**32-1) and `flags` (0 to 255) are bound to it."""
        counter = next(self._counter)
        issued_us = self._clock.now_us()
        mac = _mac(self.session_key, self._nonce, counter, issued_us, payload, deadline_ms=deadline_ms, flags=flags)
        return _WIRE.pack(self._nonce, counter, issued_us, mac) + self.ticket_bytes


def derive_agent_key(master: bytes, tenant: str, agent: str, generation: int) -> bytes:
    """Return the 32-byte key of one generation of an agent.

    `master` is the cluster's secret of at least 32 bytes. Raises ValueError when it is shorter, or a name is not of the
    identifier grammar (which is what keeps the three parts of the derivation apart).
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    if len(master) < KEY_BYTES:
        raise ValueError("the master secret has fewer than 32 bytes")
    if generation < 0:
        raise ValueError("a generation is not negative")
    info = f"sovereign/agent-key/1|{TenantId(tenant)}|{AgentId(agent)}|{generation}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(master)


def issue_ticket(
    agent_key: bytes,
    *,
    caller: str,
    tenant: str,
    agent: str,
    generation: int,
    ttl_s: float,
    scope: str = "call",
    clock: Clock | None = None,
) -> SessionGrant:
    """Return a grant for `caller` to call this generation of the agent for `ttl_s` seconds.

    Raises ValueError when the names make the ticket longer than 1024 bytes.
    """
    clock = clock or SystemClock()
    ticket = Ticket(
        ticket_id=uuid7(),
        caller=caller,
        tenant=tenant,
        agent=agent,
        scope=scope,
        generation=generation,
        expires_us=clock.now_us() + int(ttl_s * 1_000_000),
    ).to_bytes()
    if len(ticket) > MAX_TICKET_BYTES:
        raise ValueError("the ticket would be longer than 1024 bytes")
    return SessionGrant(ticket, _session_key(agent_key, ticket), clock)


class _Session:
    """One holder of one ticket, as the verifier remembers it."""

    __slots__ = ("newest_us", "window")

    def __init__(self, window: int) -> None:
        self.window = ReplayWindow(window)
        self.newest_us = 0


class GrantVerifier:
    """Decides for one generation of one agent whether a call frame may reach it. Everything doubtful is refused.

    One verifier serves all connections of the agent, so a frame replayed on another connection is still a replay. Its
    memory is bounded: `max_sessions` holders and as many tickets. A holder is forgotten only when every frame that it
    can have sent is too old to be accepted anyway; a full table refuses newcomers.
    """

    def __init__(
        self,
        agent_key: bytes,
        *,
        tenant: str,
        agent: str,
        generation: int,
        clock: Clock | None = None,
        scope: str = "call",
        window: int = 1024,
        max_skew_s: float = 60.0,
        max_sessions: int = 4096,
    ) -> None:
        if len(agent_key) != KEY_BYTES:
            raise ValueError("an agent key has 32 bytes")
        self._key = agent_key
        self._tenant = tenant
        self._agent = agent
        self._generation = generation
        self._scope = scope
        self._now_us: Callable[[], int] = (clock or SystemClock()).now_us
        self._window = window
        self._skew_us = int(max_skew_s * 1_000_000)
        self._max = max_sessions
        # Only tickets whose mac held once; anything else could be made up by the million.
        self._tickets: dict[bytes, tuple[bytes, Ticket]] = {}
        self._sessions: dict[bytes, _Session] = {}
        # No forgotten session ever signed later than this, so an unknown one must: also if the clock is set back.
        self._floor_us = 0
        # A full table is not searched again before its oldest session can be forgotten.
        self._full_until_us = 0

    def verify(self, grant: bytes, payload: bytes, *, deadline_ms: int, flags: int) -> Ticket:
        """Return the verified ticket; raises GrantRefusedError, or StaleGenerationError for another generation."""
        answer = self.check(grant, payload, deadline_ms=deadline_ms, flags=flags)
        if isinstance(answer, Refusal):
            raise answer.error()
        return answer

    def check(  # noqa: PLR0911  # a ladder: one return a reason
        self, grant: bytes, payload: bytes, *, deadline_ms: int, flags: int
    ) -> Ticket | Refusal:
        """Return the verified ticket, or why there is none. A grant is used up by the first success."""
        if not _WIRE.size < len(grant) <= _WIRE.size + MAX_TICKET_BYTES:
            return Refusal.MALFORMED
        nonce, counter, issued_us, mac = _WIRE.unpack_from(grant)
        ticket_bytes = grant[_WIRE.size :]
        known = self._tickets.get(ticket_bytes)
        key = known[0] if known else _session_key(self._key, ticket_bytes)
        expected = _mac(key, nonce, counter, issued_us, payload, deadline_ms=deadline_ms, flags=flags)
        if not hmac.compare_digest(mac, expected):
            return self._why_forged(ticket_bytes)
        # From here on the caller holds the session key: the ticket's words are the issuer's own.
        try:
            ticket = known[1] if known else Ticket.from_bytes(ticket_bytes)
        except ValueError:
            return Refusal.MALFORMED
        now_us = self._now_us()
        if (refusal := self._refuses(ticket, issued_us, now_us)) is not None:
            return refusal
        session = self._sessions.get(nonce + ticket_bytes)
        if session is None:
            if issued_us <= self._floor_us:
                return Refusal.STALE
            if (session := self._open(nonce, ticket_bytes, now_us)) is None:
                return Refusal.SESSIONS_FULL
        if not session.window.take(counter):
            return Refusal.REPLAYED
        session.newest_us = max(session.newest_us, issued_us)
        if known is None:
            self._tickets[ticket_bytes] = (key, ticket)
        return ticket

    def _refuses(self, ticket: Ticket, issued_us: int, now_us: int) -> Refusal | None:  # noqa: PLR0911  # the same
        if ticket.tenant != self._tenant or ticket.agent != self._agent:
            return Refusal.OTHER_AGENT
        if ticket.generation != self._generation:
            return Refusal.OTHER_GENERATION
        if ticket.scope != self._scope:
            return Refusal.SCOPE
        if now_us >= ticket.expires_us:
            return Refusal.EXPIRED
        if issued_us < now_us - self._skew_us:
            return Refusal.STALE
        if issued_us > now_us + self._skew_us:
            return Refusal.FUTURE
        return None

    def _why_forged(self, ticket_bytes: bytes) -> Refusal:
        """A grant of another generation has another key, so its mac never holds here; its unproven words say what to retry."""
        try:
            claim = Ticket.from_bytes(ticket_bytes)
        except ValueError:
            return Refusal.MALFORMED
        if (claim.tenant, claim.agent) != (self._tenant, self._agent):
            return Refusal.OTHER_AGENT
        return Refusal.FORGED if claim.generation == self._generation else Refusal.OTHER_GENERATION

    def _open(self, nonce: bytes, ticket_bytes: bytes, now_us: int) -> _Session | None:
        if len(self._sessions) >= self._max:
            if now_us < self._full_until_us:
                return None
            self._forget(now_us)
            if len(self._sessions) >= self._max:
                self._full_until_us = min(s.newest_us for s in self._sessions.values()) + self._skew_us
                return None
        session = self._sessions[nonce + ticket_bytes] = _Session(self._window)
        return session

    def _forget(self, now_us: int) -> None:
        """Drop the sessions of which every recorded frame is stale by now, and the tickets that nobody uses."""
        horizon_us = now_us - self._skew_us
        for name, session in list(self._sessions.items()):
            if session.newest_us < horizon_us:
                del self._sessions[name]
                self._floor_us = max(self._floor_us, session.newest_us)
        used = {name[8:] for name in self._sessions}
        self._tickets = {t: k for t, k in self._tickets.items() if t in used}


def _session_key(agent_key: bytes, ticket_bytes: bytes) -> bytes:
    return hmac.digest(agent_key, b"sovereign/session-key/1\0" + ticket_bytes, "sha256")


def _mac(
    session_key: bytes, nonce: bytes, counter: int, issued_us: int, payload: bytes, *, deadline_ms: int, flags: int
) -> bytes:
    signed = _SIGNED.pack(nonce, counter, issued_us, deadline_ms, flags, sha256(payload).digest())
    return hmac.digest(session_key, _DOMAIN + signed, "sha256")
