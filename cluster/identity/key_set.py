"""The port: public keys that access tokens are checked with, by key id. It fails closed: a key that is not known is none.

A key is found in a dictionary and nowhere else, so a key id is never a path, a URL or a query.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from cluster.errors import UnavailableError

# What may be pinned: signatures by a key pair. With a shared secret, whoever checks a token could make one.
ALGORITHMS: Final = ("Ed25519", "EdDSA", "ES256", "ES384", "PS256", "RS256")
# What the embedded issuer signs with.
SIGNING_ALGORITHM: Final = "ES256"
MAX_KEYS: Final = 64
MAX_KEY_ID: Final = 256
_EC_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384"}
_RSA_BITS: Final = range(2048, 8193)


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """Whose tokens a key may sign, and how they say who asks."""

    issuer: str
    audience: str
    tenant_claim: str = "tenant"
    project_claim: str = "project"
    # Another's subjects may be personal data, so only a digest of them is kept; ours name an API key.
    ours: bool = False


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key with everything that a token signed with it must be: the algorithms that it may have, the issuer."""

    key_id: str
    algorithms: frozenset[str]
    key: Key
    issuer: TrustedIssuer


class KeySet(Protocol):
    """The public keys of one issuer; safe to use from many threads."""

    def find(self, key_id: str) -> VerificationKey | None:
        """Return the key of that id, or None.

        Raises IssuerAwayError when it can't be said yet whether there is one; it never waits.
        """
        ...


class SigningKeySet(KeySet, Protocol):
    """The keys of the embedded issuer, with the one that signs."""

    def signing_key(self) -> ECKey:
        """Return the key that signs now."""
        ...

    def public_jwks(self) -> dict[str, Any]:
        """Return the JSON Web Key Set that anyone may have."""
        ...


class IssuerAwayError(UnavailableError):
    """The issuer's keys are not here: its `fetch` is under way, or it failed and will be tried again."""

    code = "issuer_away"
    # Under way when set: whoever waits for it may ask again, once.
    fetch: Future[None] | None = None


def read_key_set(document: Any, issuer: TrustedIssuer, allowed: Collection[str]) -> dict[str, VerificationKey]:
    """Return the usable keys of a JSON Web Key Set by their ids; raises ValueError when the document is no key set.

    Left out: a key without an id or with another's, one for encryption, a shared secret, a private key that should not
    be there, one of an algorithm that is not among `allowed`, and RSA of fewer than 2048 bits.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"it has no list of at most {MAX_KEYS} keys")
    found: dict[str, VerificationKey] = {}
    twice: set[str] = set()
    for each in listed:
        if (key := _usable(each, issuer, frozenset(allowed))) is not None:
            if key.key_id in found:
                twice.add(key.key_id)
            found[key.key_id] = key
    return {key_id: key for key_id, key in found.items() if key_id not in twice}


def _usable(jwk: Any, issuer: TrustedIssuer, allowed: frozenset[str]) -> VerificationKey | None:
    if not isinstance(jwk, dict) or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    key_id = jwk.get("kid")
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= MAX_KEY_ID:
        return None
    # Only what a public key is made of: certificates and URLs beside it mean nothing here.
    plain = {k: v for k, v in jwk.items() if k in ("kty", "crv", "x", "y", "n", "e", "alg")}
    try:
        key, algorithms = _import(plain)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    said = plain.get("alg")
    usable = (algorithms if said is None else algorithms & {said}) & allowed
    return VerificationKey(key_id, usable, key, issuer) if usable else None


def _import(jwk: Mapping[str, Any]) -> tuple[Key, frozenset[str]]:
    """Return the key and every algorithm that it could be used with; raises for what is none."""
    data = cast("Any", dict(jwk))
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "OKP" and curve == "Ed25519":
        return OKPKey.import_key(data), frozenset({"Ed25519", "EdDSA"})
    if kind == "EC" and curve in _EC_ALGORITHMS:
        return ECKey.import_key(data), frozenset({_EC_ALGORITHMS[curve]})
    if kind == "RSA" and len(jwk["n"]) * 6 >= _RSA_BITS.start:
        key = RSAKey.import_key(data)
        if key.public_key.key_size in _RSA_BITS:
            return key, frozenset({"RS256", "PS256"})
    raise ValueError("not a kind of key that is used here")
