"""API keys in the coordination store, and who is let in by them: `sk-sov-<key id>-<secret>`.

The node `/keys/<key id>` holds whose key it is. Keys of a tenant are listed under `/tenants/<tenant>/keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Final

from cluster.clock import Clock
from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Op, Set
from cluster.errors import IntegrityError, NotFoundError, UnauthenticatedError
from cluster.identity.api_key import ApiKey, digest_of, new_key
from cluster.identity.authentication import unauthenticated
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

__all__ = [
    "ApiKey",
    "ApiKeyAuthenticator",
    "change_key",
    "create_key",
    "find_key",
    "list_keys",
    "ops_to_create",
    "revoke_key",
    "revoked",
]

_HEADER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] {1,4}sk-sov-([0-9a-f]{16})-([0-9a-f]{64})")
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
# How long a revoked key, or a secret that was rotated out, may go on being taken by a process that has just seen it.
CACHE_TTL_US: Final = 2_000_000
_CACHE_SIZE: Final = 4_096


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
    text, key = new_key(clock, tenant=tenant, project=project, scopes=scopes, ttl_s=ttl_s)
    coordination.transact(ops_to_create(key))
    return text, key


def ops_to_create(key: ApiKey) -> list[Op]:
    """Return what makes a key."""
    return [Create(_path(key.key_id), key.to_bytes()), Create(f"/tenants/{key.principal.tenant}/keys/{key.key_id}", b"{}")]


def find_key(coordination: Coordination, tenant: TenantId, key_id: str) -> ApiKey:
    """Return a key of `tenant`; raises NotFoundError when it has none of this id, in the same words for another's."""
    return _find(coordination, tenant, key_id)[0]


def change_key(
    coordination: Coordination, tenant: TenantId, key_id: str, change: Callable[[ApiKey], ApiKey], *guards: Op
) -> ApiKey:
    """Store what `change` makes of the key of now, while the `guards` hold; returns it. Raises NotFoundError.

    A conflict on a guard is raised; a key that another process changed meanwhile is read and changed anew.
    """
    while True:
        key, version = _find(coordination, tenant, key_id)
        changed = change(key)
        if changed == key:
            return key
        try:
            coordination.transact([*guards, Set(_path(key_id), changed.to_bytes(), version)])
        except CoordinationConflictError as e:
            if e.path != _path(key_id):
                raise
            continue
        return changed


def revoke_key(coordination: Coordination, clock: Clock, *, tenant: TenantId, key_id: str) -> ApiKey:
    """Revoke a key of `tenant` and return it; no process takes it after 2 seconds. To revoke twice changes nothing.

    Raises NotFoundError when the tenant has no such key.
    """
    return change_key(coordination, tenant, key_id, lambda key: revoked(key, clock))


def revoked(key: ApiKey, clock: Clock) -> ApiKey:
    """Return the key as it is once it was revoked; what was revoked before stays as it is."""
    return key if key.revoked_us else replace(key, revoked_us=clock.now_us())


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
        key_id, digest, now_us = match[1], digest_of(match[2]), self._clock.now_us()
        key = self._remembered(key_id)
        # What is remembered may be older than the secret: one that does not fit is looked up as an unknown key is.
        if key is None or not key.proved_by(digest, now_us):
            key = self._look_up(key_id)
        # Compared also when there is no such key: how long a refusal takes does not say which part was wrong.
        right = (key or _NOBODY).proved_by(digest, now_us)
        if key is None or not right or not key.holds(now_us):
            raise unauthenticated()
        return key.principal

    def _remembered(self, key_id: str) -> ApiKey | None:
        known = self._cache.get(key_id)
        return known[1] if known is not None and self._clock.monotonic_us() - known[0] < CACHE_TTL_US else None

    def _look_up(self, key_id: str) -> ApiKey | None:
        # Before the reading: what changes during it is seen by the next one.
        now_us = self._clock.monotonic_us()
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


_NOBODY: Final = ApiKey("", "0" * 64, Principal(TenantId("nobody"), ProjectId("default"), "", frozenset()), 0, revoked_us=1)


def _find(coordination: Coordination, tenant: TenantId, key_id: str) -> tuple[ApiKey, int]:
    node = coordination.get(_path(key_id)) if _KEY_ID.fullmatch(key_id) else None
    key = ApiKey.from_bytes(key_id, node.value) if node else None
    if node is None or key is None or key.principal.tenant != tenant:
        raise NotFoundError(f"There is no API key {key_id[:32]!r}.", hint="List the keys to see which there are.")
    return key, node.version


def _path(key_id: str) -> str:
    return f"/keys/{key_id}"
