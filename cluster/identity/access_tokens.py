"""What an access token says (RFC 9068), and when it is one: pure, of claims whose signature has been checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cluster.errors import SovereignError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.key_set import TrustedIssuer
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

TYP: Final = "at+jwt"
# As RFC 9068, section 4, has it: media types may be written with their tree, and case says nothing.
_TYPES: Final = frozenset({TYP, f"application/{TYP}"})
MAX_LIFE_S: Final = 15 * 60
# How often a token may be exchanged for a narrower one: the length of a chain that one revocation must reach.
MAX_ANCESTORS: Final = 4
_MAX_TEXT: Final = 512
_OUR_SUBJECT: Final = re.compile(r"key:[0-9a-f]{16}|oidc:[0-9a-f]{32}")
_TOKEN_ID: Final = re.compile(r"[0-9a-f]{40}")
_KNOWN_SCOPES: Final = frozenset(Scope)


class TokenRefusedError(Exception):
    """A token is not taken; `why` is for operators, and whoever sent it hears the same whatever it is."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token that holds: who it speaks for, and from when until when, in seconds since 1970 UTC."""

    principal: Principal
    issuer: str
    # What a revocation names: a digest of issuer and `jti`, so that two issuers' tokens never share one.
    token_id: str
    client_id: str
    issued_s: int
    expires_s: int
    # The ids of the tokens that this one was exchanged from, the first of them first: it ends with each of them.
    ancestors: tuple[str, ...] = ()
    ours: bool = True
    # Names the secret of the API key that it was got with, as `fingerprint_of` does.
    secret: str = ""

    @property
    def key_id(self) -> str:
        """The API key that the token was got with, which it ends with; empty when another issuer's user is behind it."""
        subject = self.principal.subject
        return subject[4:] if self.ours and subject.startswith("key:") else ""


def token_id(issuer: str, jti: str) -> str:
    """Return what a token is revoked under: 40 hex digits."""
    return _digest(issuer, jti)[:40]


def check_type(header: Mapping[str, Any]) -> None:
    """Raise TokenRefusedError unless the header says that this is an access token, and nothing that we don't understand."""
    typ = header.get("typ")
    if not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise TokenRefusedError("type")
    # No extension is understood here, so nothing may be critical: RFC 7515, section 4.1.11.
    if "crit" in header or "b64" in header:
        raise TokenRefusedError("crit")


def read_claims(claims: Any, issuer: TrustedIssuer, *, now_s: int, leeway_s: int) -> AccessToken:
    """Return the token that says `claims`, which a key of `issuer` signed.

    `leeway_s` is how far ahead of ours the issuer's clock may go; no token lives longer for it. Raises TokenRefusedError.
    """
    if not isinstance(claims, dict):
        raise TokenRefusedError("claims")
    if claims.get("iss") != issuer.issuer:
        raise TokenRefusedError("issuer")
    if not _is_for(claims.get("aud"), issuer.audience):
        raise TokenRefusedError("audience")
    issued_s, expires_s = _times(claims, now_s, leeway_s)
    jti, subject, client_id = (_text(claims, name) for name in ("jti", "sub", "client_id"))
    return AccessToken(
        principal=_principal(claims, issuer, subject),
        issuer=issuer.issuer,
        token_id=token_id(issuer.issuer, jti),
        client_id=client_id,
        issued_s=issued_s,
        expires_s=expires_s,
        ancestors=_ancestors(claims) if issuer.ours else (),
        ours=issuer.ours,
        secret=_text(claims, "secret") if issuer.ours and "secret" in claims else "",
    )


def _is_for(audience: Any, ours: str) -> bool:
    return audience == ours if isinstance(audience, str) else isinstance(audience, list) and ours in audience


def _times(claims: Mapping[str, Any], now_s: int, leeway_s: int) -> tuple[int, int]:
    issued_s, expires_s, begins_s = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
    if type(issued_s) is not int or type(expires_s) is not int or type(begins_s) is not int:
        raise TokenRefusedError("times")
    if now_s >= expires_s:
        raise TokenRefusedError("expired")
    if issued_s > now_s + leeway_s or begins_s > now_s + leeway_s:
        raise TokenRefusedError("not yet")
    if not 0 < expires_s - issued_s <= MAX_LIFE_S:
        raise TokenRefusedError("life")
    return issued_s, expires_s


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT:
        raise TokenRefusedError(name)
    return value


def _principal(claims: Mapping[str, Any], issuer: TrustedIssuer, subject: str) -> Principal:
    if not issuer.ours:
        subject = f"oidc:{_digest(issuer.issuer, subject)[:32]}"
    elif not _OUR_SUBJECT.fullmatch(subject):
        raise TokenRefusedError("sub")
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise TokenRefusedError("scope")
    try:
        tenant = TenantId(claims.get(issuer.tenant_claim, ""))
        project = ProjectId(claims.get(issuer.project_claim, "default"))
    except (ValueError, SovereignError):
        raise TokenRefusedError("tenant") from None
    # An issuer has scopes for others too ("openid"): what is none of ours gives nothing here.
    return Principal(tenant, project, subject, frozenset(Scope(s) for s in scope.split(" ") if s in _KNOWN_SCOPES))


def _ancestors(claims: Mapping[str, Any]) -> tuple[str, ...]:
    found = claims.get("ancestors", [])
    if not isinstance(found, list) or len(found) > MAX_ANCESTORS:
        raise TokenRefusedError("ancestors")
    if not all(isinstance(a, str) and _TOKEN_ID.fullmatch(a) for a in found):
        raise TokenRefusedError("ancestors")
    return tuple(found)


def _digest(issuer: str, name: str) -> str:
    return sha256(f"{issuer}\0{name}".encode()).hexdigest()
