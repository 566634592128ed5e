"""API keys: `sk-sov-<key id>-<secret>`. Only the SHA-256 of the secret is kept, which is enough for 256 random bits.

The node `/keys/<key id>` holds whose key it is. Keys of a tenant are listed under `/tenants/<tenant>/keys`.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any, Final

import orjson

from cluster.clock import Clock
from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Set
from cluster.errors import IntegrityError, InvalidRequestError, NotFoundError, UnauthenticatedError
from cluster.identity.authentication import unauthenticated
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

_HEADER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] {1,4}sk-sov-([0-9a-f]{16})-([0-9a-f]{64})")
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
# How long a revoked key may go on being taken by a process that has just seen it.
CACHE_TTL_US: Final = 2_000_000
_CACHE_SIZE: Final = 4_096


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as it is stored. Times are microseconds since 1970 UTC; `expires_us` and `revoked_us` are 0 for never."""

    key_id: str
    # SHA-256 of the secret, hex.
    digest: str
    principal: Principal
    created_us: int
    expires_us: int = 0
    revoked_us: int = 0

    def to_bytes(self) -> bytes:
        """Return the value of this key's node."""
        p = self.principal
        return orjson.dumps(
            {
                "digest": self.digest,
                "tenant": str(p.tenant),
                "project": str(p.project),
                "scopes": sorted(p.scopes),
                "created_us": self.created_us,
                "expires_us": self.expires_us,
                "revoked_us": self.revoked_us,
            }
        )

    @classmethod
    def from_bytes(cls, key_id: str, value: bytes) -> ApiKey:
        """Return the key that `to_bytes` wrote; raises IntegrityError for anything else."""
        try:
            stored: dict[str, Any] = orjson.loads(value)
            scopes = frozenset(map(Scope, stored["scopes"]))
            principal = Principal(TenantId(stored["tenant"]), ProjectId(stored["project"]), f"key:{key_id}", scopes)
            times = [int(stored[k]) for k in ("created_us", "expires_us", "revoked_us")]
            return cls(key_id, str(stored["digest"]), principal, *times)
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"The stored API key {key_id} can't be read: {e!r}.") from None

    def holds(self, now_us: int) -> bool:
        """Return whether the key may be used at `now_us`."""
        return not self.revoked_us and (not self.expires_us or now_us < self.expires_us)


def create_key(
    coordination: Coordination,
    clock: Clock,
    *,
    tenant: TenantId,
    project: ProjectId,
    scopes: frozenset[Scope],
    ttl_s: int = 0,
) -> tuple[str, ApiKey]:
    """Make a key and return its text, which is shown this once and kept nowhere, with what is stored of it.

    `ttl_s` is its life in seconds, 0 without end. Raises InvalidRequestError for a key without scopes or a negative life.
    """
    if not scopes or ttl_s < 0:
        raise InvalidRequestError("An API key needs at least one scope, and a life of 0 (without end) or more seconds.")
    key_id, secret, now_us = secrets.token_hex(8), secrets.token_hex(32), clock.now_us()
    key = ApiKey(
        key_id=key_id,
        digest=_digest(secret),
        principal=Principal(tenant, project, f"key:{key_id}", scopes),
        created_us=now_us,
        expires_us=now_us + ttl_s * 1_000_000 if ttl_s else 0,
    )
    coordination.transact([Create(_path(key_id), key.to_bytes()), Create(f"/tenants/{tenant}/keys/{key_id}", b"{}")])
    return f"sk-sov-{key_id}-{secret}", key


def revoke_key(coordination: Coordination, clock: Clock, *, tenant: TenantId, key_id: str) -> ApiKey:
    """Revoke a key of `tenant` and return it; no process takes it after 2 seconds. To revoke twice changes nothing.

    Raises NotFoundError when the tenant has no such key.
    """
    while True:
        node = coordination.get(_path(key_id)) if _KEY_ID.fullmatch(key_id) else None
        key = ApiKey.from_bytes(key_id, node.value) if node else None
        if node is None or key is None or key.principal.tenant != tenant:
            raise NotFoundError(f"There is no API key {key_id[:32]!r}.")
        if key.revoked_us:
            return key
        revoked = ApiKey(key.key_id, key.digest, key.principal, key.created_us, key.expires_us, clock.now_us())
        try:
            coordination.transact([Set(_path(key_id), revoked.to_bytes(), node.version)])
        except CoordinationConflictError:
            # Only another revocation changes a key, so the next reading ends this.
            continue
        return revoked


def list_keys(coordination: Coordination, tenant: TenantId, *, after: str = "", limit: int = 100) -> list[ApiKey]:
    """Return up to `limit` keys of `tenant` in order of their ids, from the first one greater than `after` on."""
    ids = coordination.children(f"/tenants/{tenant}/keys", after=after, limit=limit)
    return [ApiKey.from_bytes(i, node.value) for i in ids if (node := coordination.get(_path(i)))]


class ApiKeyAuthenticator:
    """Authenticates by API key. A key that was seen is remembered for 2 seconds, so the usual cost is one hash."""

    def __init__(self, coordination: Coordination, clock: Clock) -> None:
        self._coordination = coordination
        self._clock = clock
        # Only keys that exist, so that guesses can't fill it; the oldest goes first.
        self._cache: dict[str, tuple[int, ApiKey]] = {}
        self._lock = Lock()

    def authenticate(self, authorization_header: str) -> Principal:
        """Return the principal of the key in `Bearer <key>`; raises UnauthenticatedError."""
        match = _HEADER.fullmatch(authorization_header)
        if match is None:
            raise unauthenticated()
        key = self._find(match[1])
        # Compared also when there is no such key: how long a refusal takes does not say which part was wrong.
        right = hmac.compare_digest(_digest(match[2]), key.digest if key else "0" * 64)
        if key is None or not right or not key.holds(self._clock.now_us()):
            raise unauthenticated()
        return key.principal

    def _find(self, key_id: str) -> ApiKey | None:
        now_us = self._clock.monotonic_us()
        known = self._cache.get(key_id)
        if known is not None and now_us - known[0] < CACHE_TTL_US:
            return known[1]
        node = self._coordination.get(_path(key_id))
        try:
            key = ApiKey.from_bytes(key_id, node.value) if node else None
        except IntegrityError as e:
            raise UnauthenticatedError(unauthenticated().detail, hint=unauthenticated().hint) from e
        with self._lock:
            self._cache.pop(key_id, None)
            if key is not None:
                while len(self._cache) >= _CACHE_SIZE:
                    del self._cache[next(iter(self._cache))]
                self._cache[key_id] = (now_us, key)
        return key


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _path(key_id: str) -> str:
    return f"/keys/{key_id}"
