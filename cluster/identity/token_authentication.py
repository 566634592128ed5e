"""Authentication by access token beside the one by API key. A token that was verified is remembered, so that the usual
call costs one digest and no signature check.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Final

from cluster.clock import Clock
from cluster.errors import IntegrityError
from cluster.identity.access_tokens import AccessToken, TokenRefusedError
from cluster.identity.authentication import Authenticator, unauthenticated
from cluster.identity.principal import Principal
from cluster.identity.revocations import Revocations
from cluster.identity.token_verifier import MAX_TOKEN_CHARS, TokenVerifier

# How long a process may go on taking a token that was revoked after it saw it: the bound of every revocation.
RECHECK_US: Final = 2_000_000
_CACHE_SIZE: Final = 4_096
_SCHEME_CHARS: Final = 24


@dataclass(slots=True)
class _Seen:
    token: AccessToken
    expires_us: int
    # When the deny list was last read, by the monotonic clock.
    checked_us: int


class TokenAuthenticator:
    """Takes access tokens, and hands what looks like an API key to the authenticator of those."""

    def __init__(self, api_keys: Authenticator, verifier: TokenVerifier, revocations: Revocations, clock: Clock) -> None:
        self._api_keys = api_keys
        self._verifier = verifier
        self._revocations = revocations
        self._clock = clock
        # By a digest, so that no token stays in memory; only verified ones, so that guesses can't fill it. Oldest first.
        self._seen: dict[bytes, _Seen] = {}
        self._lock = Lock()

    def authenticate(self, authorization_header: str) -> Principal:
        """Return who the API key or access token in `Bearer …` stands for.

        Raises UnauthenticatedError; IssuerAwayError when an issuer's keys must be fetched first.
        """
        if len(authorization_header) > MAX_TOKEN_CHARS + _SCHEME_CHARS:
            raise unauthenticated()
        if "sk-sov-" in authorization_header[:_SCHEME_CHARS]:
            return self._api_keys.authenticate(authorization_header)
        digest = sha256(authorization_header.encode("utf-8", "surrogatepass")).digest()
        seen = self._seen.get(digest)
        try:
            if seen is None:
                seen = self._first_seen(digest, authorization_header)
            else:
                self._still_holds(seen)
        except TokenRefusedError as refused:
            with self._lock:
                self._seen.pop(digest, None)
            raise unauthenticated() from refused
        return seen.token.principal

    def _first_seen(self, digest: bytes, header: str) -> _Seen:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise TokenRefusedError("scheme")
        verified = self._verifier.verify(token.lstrip(" "))
        seen = _Seen(verified, verified.expires_s * 1_000_000, 0)
        self._check(seen)
        with self._lock:
            while len(self._seen) >= _CACHE_SIZE:
                del self._seen[next(iter(self._seen))]
            self._seen[digest] = seen
        return seen

    def _still_holds(self, seen: _Seen) -> None:
        if self._clock.now_us() >= seen.expires_us:
            raise TokenRefusedError("expired")
        if self._clock.monotonic_us() - seen.checked_us >= RECHECK_US:
            self._check(seen)

    def _check(self, seen: _Seen) -> None:
        # Before the reading: what is revoked during it is seen by the next one.
        now_us = self._clock.monotonic_us()
        try:
            revoked = self._revocations.is_revoked(seen.token)
        except IntegrityError:
            raise TokenRefusedError("key") from None
        if revoked:
            raise TokenRefusedError("revoked")
        seen.checked_us = now_us
