"""The embedded issuer: makes access tokens (RFC 9068), never with more rights or a longer life than what they are got with."""

from __future__ import annotations

import secrets
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import orjson
from joserfc import jws

from cluster.clock import Clock
from cluster.errors import InvalidRequestError, InvalidScopeError
from cluster.identity.access_tokens import MAX_ANCESTORS, MAX_LIFE_S, TYP, AccessToken, token_id
from cluster.identity.key_set import SIGNING_ALGORITHM, SigningKeySet, TrustedIssuer
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

_MIN_LIFE_S: Final = 1


class IssuedToken(NamedTuple):
    """A new token: its text, which is handed out once and kept nowhere, and what it says."""

    text: str
    token: AccessToken


class TokenIssuer:
    """Signs with the key of the moment."""

    def __init__(self, keys: SigningKeySet, issuer: TrustedIssuer, clock: Clock, *, life_s: int) -> None:
        """Give tokens `life_s` seconds unless they are asked for with less; at most 15 minutes."""
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._life_s = min(life_s, MAX_LIFE_S)

    def issue(
        self, principal: Principal, client_id: str, secret: str, *, scopes: AbstractSet[Scope] | None, life_s: int | None
    ) -> IssuedToken:
        """Return a token for `principal` with `scopes` of its own, all unless given, for `life_s` seconds.

        `secret` names what the client proved itself with; the token ends with it.

        Raises InvalidScopeError for scopes that it has not, InvalidRequestError for a life that is not to be had.
        """
        granted = _narrowed(principal.scopes, scopes)
        return self._sign(principal, granted, client_id, secret=secret, life_s=self._life(life_s, self._life_s))

    def exchange(self, subject: AccessToken, *, scopes: AbstractSet[Scope] | None, life_s: int | None) -> IssuedToken:
        """Return a token for the same principal with no more scopes than `subject`, which ends no later and with it.

        Raises InvalidScopeError for wider scopes; InvalidRequestError for a longer life, or for a token that was exchanged
        too often.
        """
        granted = _narrowed(subject.principal.scopes, scopes)
        left_s = subject.expires_s - self._now_s()
        life_s = self._life(life_s, min(self._life_s, left_s))
        if len(subject.ancestors) >= MAX_ANCESTORS:
            raise InvalidRequestError(
                f"The subject_token was exchanged {MAX_ANCESTORS} times, which is the most.",
                hint="Exchange one of those before it.",
            )
        ancestors = (*subject.ancestors, subject.token_id)
        return self._sign(
            subject.principal, granted, subject.client_id, secret=subject.secret, life_s=life_s, ancestors=ancestors
        )

    def _life(self, asked_s: int | None, most_s: int) -> int:
        life_s = most_s if asked_s is None else asked_s
        if not _MIN_LIFE_S <= life_s <= most_s:
            raise InvalidRequestError(
                f"A token of {life_s} s can't be had here.",
                hint=f"Ask for expires_in from {_MIN_LIFE_S} to {most_s}, or leave it out.",
            )
        return life_s

    def _sign(
        self,
        principal: Principal,
        scopes: frozenset[Scope],
        client_id: str,
        *,
        secret: str,
        life_s: int,
        ancestors: tuple[str, ...] = (),
    ) -> IssuedToken:
        now_s, jti, key = self._now_s(), secrets.token_urlsafe(16), self._keys.signing_key()
        claims = {
            "iss": self._issuer.issuer,
            "aud": self._issuer.audience,
            "sub": principal.subject,
            "client_id": client_id,
            "tenant": principal.tenant,
            "project": principal.project,
            "scope": " ".join(sorted(scopes)),
            "iat": now_s,
            "exp": now_s + life_s,
            "jti": jti,
        }
        if secret:
            claims["secret"] = secret
        if ancestors:
            claims["ancestors"] = list(ancestors)
        header = {"alg": SIGNING_ALGORITHM, "typ": TYP, "kid": key.kid}
        text = jws.serialize_compact(header, orjson.dumps(claims), key, algorithms=[SIGNING_ALGORITHM])
        narrowed = Principal(principal.tenant, principal.project, principal.subject, scopes)
        issuer = self._issuer.issuer
        token = AccessToken(narrowed, issuer, token_id(issuer, jti), client_id, now_s, now_s + life_s, ancestors, secret=secret)
        return IssuedToken(text, token)

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000


def _narrowed(held: frozenset[Scope], asked: AbstractSet[Scope] | None) -> frozenset[Scope]:
    """Return what is granted of what is `held`; never more. Raises InvalidScopeError."""
    if asked is None:
        return held
    if wider := sorted(asked - held):
        raise InvalidScopeError(
            f"What the token is got with lacks {', '.join(wider)}.",
            hint="Ask for scopes that it has, or leave scope out for all.",
        )
    return frozenset(asked)
