"""One API key as it is stored: whose it is, until when, and the SHA-256 of its secret, which is enough for 256 random bits."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import orjson

from cluster.clock import Clock, utc
from cluster.errors import IntegrityError, InvalidRequestError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Times are microseconds since 1970 UTC; `expires_us`, `revoked_us` and `previous_until_us` are 0 for never."""

    key_id: str
    # SHA-256 of the secret, hex.
    digest: str
    principal: Principal
    created_us: int
    expires_us: int = 0
    revoked_us: int = 0
    # What people call it, and the role that it was made for; both only to be shown.
    name: str = ""
    role: str = ""
    # The end of the key's text, by which its holder knows it again; empty for keys of before it was kept.
    last4: str = ""
    # The digest of the secret before the last rotation, which is taken until `previous_until_us`.
    previous_digest: str = ""
    previous_until_us: int = 0

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
                "name": self.name,
                "role": self.role,
                "last4": self.last4,
                "previous_digest": self.previous_digest,
                "previous_until_us": self.previous_until_us,
            }
        )

    @classmethod
    def from_bytes(cls, key_id: str, value: bytes) -> ApiKey:
        """Return the key that `to_bytes` wrote, also an earlier release's; raises IntegrityError for anything else."""
        try:
            stored: dict[str, Any] = orjson.loads(value)
            scopes = frozenset(map(Scope, stored["scopes"]))
            principal = Principal(TenantId(stored["tenant"]), ProjectId(stored["project"]), f"key:{key_id}", scopes)
            return cls(
                key_id,
                str(stored["digest"]),
                principal,
                created_us=int(stored["created_us"]),
                expires_us=int(stored["expires_us"]),
                revoked_us=int(stored["revoked_us"]),
                name=str(stored.get("name", "")),
                role=str(stored.get("role", "")),
                last4=str(stored.get("last4", "")),
                previous_digest=str(stored.get("previous_digest", "")),
                previous_until_us=int(stored.get("previous_until_us", 0)),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"The stored API key {key_id} can't be read: {e!r}.") from None

    def holds(self, now_us: int) -> bool:
        """Return whether the key may be used at `now_us`."""
        return not self.revoked_us and (not self.expires_us or now_us < self.expires_us)

    def proved_by(self, secret_digest: str, now_us: int) -> bool:
        """Return whether this is the digest of its secret, or of the one before while that is taken; in constant time."""
        now = hmac.compare_digest(secret_digest, self.digest)
        before = hmac.compare_digest(secret_digest, self.previous_digest or "0" * 64)
        return now or (before and now_us < self.previous_until_us)

    def fingerprints(self, now_us: int) -> set[str]:
        """Return what names each secret that is taken at `now_us`: what was got with a secret ends with it."""
        found = {fingerprint_of(self.digest)}
        return found | {fingerprint_of(self.previous_digest)} if now_us < self.previous_until_us else found

    def rotated(self, clock: Clock, *, overlap_s: int) -> tuple[str, ApiKey]:
        """Return the key's new text, which is kept nowhere, and the key; the secret of now is taken for `overlap_s` more.

        A secret from before the one of now is taken no longer. Raises InvalidRequestError for a negative overlap.
        """
        if overlap_s < 0:
            raise InvalidRequestError("The overlap of a rotation is 0 or more seconds.")
        text, digest = new_secret(self.key_id)
        until_us = clock.now_us() + overlap_s * 1_000_000 if overlap_s else 0
        previous = self.digest if overlap_s else ""
        return text, replace(self, digest=digest, last4=text[-4:], previous_digest=previous, previous_until_us=until_us)

    def to_public(self, now_us: int) -> dict[str, Any]:
        """Return what those who manage it may see, with times as people write them; None for never."""
        state = "active" if self.holds(now_us) else "revoked" if self.revoked_us else "expired"
        overlaps = self.previous_until_us if self.previous_digest and now_us < self.previous_until_us else 0
        return {
            "key_id": self.key_id,
            "name": self.name,
            "last4": self.last4,
            "tenant": str(self.principal.tenant),
            "project": str(self.principal.project),
            "role": self.role or None,
            "scopes": sorted(self.principal.scopes),
            "state": state,
            "created_at": utc(self.created_us).isoformat(),
            "expires_at": _said(self.expires_us),
            "revoked_at": _said(self.revoked_us),
            "previous_secret_until": _said(overlaps),
        }


def new_key(
    clock: Clock,
    *,
    tenant: TenantId,
    project: ProjectId,
    scopes: frozenset[Scope],
    ttl_s: int = 0,
    name: str = "",
    role: str = "",
) -> tuple[str, ApiKey]:
    """Return the text of a new key, which is kept nowhere, and what is to be stored of it.

    `ttl_s` is its life in seconds, 0 without end. Raises InvalidRequestError for a key without scopes or a negative life.
    """
    if not scopes or ttl_s < 0:
        raise InvalidRequestError("An API key needs at least one scope, and a life of 0 (without end) or more seconds.")
    key_id, now_us = secrets.token_hex(8), clock.now_us()
    text, digest = new_secret(key_id)
    principal = Principal(tenant, project, f"key:{key_id}", scopes)
    expires_us = now_us + ttl_s * 1_000_000 if ttl_s else 0
    return text, ApiKey(key_id, digest, principal, now_us, expires_us, name=name, role=role, last4=text[-4:])


def new_secret(key_id: str) -> tuple[str, str]:
    """Return a key's text with a new secret, and the secret's digest."""
    secret = secrets.token_hex(32)
    return f"sk-sov-{key_id}-{secret}", digest_of(secret)


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a secret, hex."""
    return sha256(secret.encode()).hexdigest()


def fingerprint_of(digest: str) -> str:
    """Return what may be said of a secret with this digest without giving the digest away: 16 hex digits."""
    return sha256(f"fingerprint {digest}".encode()).hexdigest()[:16]


def _said(time_us: int) -> str | None:
    return utc(time_us).isoformat() if time_us else None
