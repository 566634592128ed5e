"""From the text of a token to what it says: size, form, header, key, signature, claims, in this order and no further."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from joserfc import jws
from joserfc.util import urlsafe_b64decode

from cluster.admission.strict_json import parse_strict_json
from cluster.clock import Clock
from cluster.errors import SovereignError
from cluster.identity.access_tokens import AccessToken, TokenRefusedError, check_type, read_claims
from cluster.identity.key_set import IssuerAwayError, KeySet, VerificationKey

# Looked at before anything else: what is larger is not parsed, decoded or copied.
MAX_TOKEN_CHARS: Final = 8 << 10
_MAX_HEADER_CHARS: Final = 4 << 10
_COMPACT: Final = re.compile(rf"([\w-]{{1,{_MAX_HEADER_CHARS}}})\.[\w-]{{1,{MAX_TOKEN_CHARS}}}\.[\w-]{{1,1400}}", re.ASCII)


class _Pinned(jws.JWSRegistry):
    """The one algorithm that a key was found for. An empty list would mean the library's own choice, so there is none."""

    max_header_length = _MAX_HEADER_CHARS

    def __init__(self, algorithm: str) -> None:
        # Unknown headers are to be ignored, and `crit` was refused before.
        super().__init__(algorithms=[algorithm], strict_check_header=False)
        self._only = algorithm

    def get_alg(self, name: str) -> Any:
        """Return the algorithm; raises TokenRefusedError for any other than the pinned one."""
        if name != self._only:
            raise TokenRefusedError("algorithm")
        return self.algorithms[name]


class TokenVerifier:
    """Checks access tokens against the keys of the issuers that are trusted here."""

    def __init__(self, key_sets: Sequence[KeySet], clock: Clock, *, algorithms: Collection[str], leeway_s: int) -> None:
        """Take tokens signed with one of `algorithms` by a key of `key_sets`, of which the first that knows it counts."""
        self._key_sets = tuple(key_sets)
        self._clock = clock
        self._registries = {name: _Pinned(name) for name in algorithms}
        self._leeway_s = leeway_s

    def verify(self, token: str) -> AccessToken:
        """Return what the token says; raises TokenRefusedError, or IssuerAwayError when its key can't be had now."""
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenRefusedError("size")
        form = _COMPACT.fullmatch(token)
        if form is None:
            raise TokenRefusedError("form")
        try:
            header = _json(form[1].encode())
            check_type(header)
            key = self._key_of(header)
            signed = jws.deserialize_compact(token, key.key, registry=self._registries[header["alg"]])
            claims = parse_strict_json(signed.payload or b"", max_bytes=MAX_TOKEN_CHARS)
        except (TokenRefusedError, IssuerAwayError):
            raise
        except Exception as e:
            # Whatever a library makes of hostile bytes, it is one thing to us: no token.
            raise TokenRefusedError(f"signature or form: {type(e).__name__}") from None
        return read_claims(claims, key.issuer, now_s=self._clock.now_us() // 1_000_000, leeway_s=self._leeway_s)

    def verify_waiting(self, token: str, *, timeout_s: float = 15.0) -> AccessToken:
        """Return what `verify` does, waiting for an issuer's keys that are on their way; not for an event loop."""
        try:
            return self.verify(token)
        except IssuerAwayError as away:
            if away.fetch is None:
                raise
            away.fetch.result(timeout_s)
        return self.verify(token)

    def _key_of(self, header: dict[str, Any]) -> VerificationKey:
        """Return the key that the header names by `kid`; `jwk`, `jku`, `x5u` and `x5c` beside it mean nothing here."""
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._registries:
            raise TokenRefusedError("algorithm")
        if not isinstance(key_id, str):
            raise TokenRefusedError("kid")
        key = next((found for keys in self._key_sets if (found := keys.find(key_id)) is not None), None)
        if key is None:
            raise TokenRefusedError("kid")
        if algorithm not in key.algorithms:
            raise TokenRefusedError("algorithm")
        return key


def _json(segment: bytes) -> dict[str, Any]:
    try:
        header = parse_strict_json(urlsafe_b64decode(segment), max_bytes=_MAX_HEADER_CHARS)
    except (SovereignError, ValueError):
        raise TokenRefusedError("header") from None
    if not isinstance(header, dict):
        raise TokenRefusedError("header")
    return header
