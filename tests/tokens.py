"""Everything of identity without HTTP, with an issuer of its own and another one, and tokens made by hand for attacks."""

from __future__ import annotations

import base64
import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from cluster.admission.active_tenants import TenantSuspendedError
from cluster.clock import FakeClock
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.identity.api_key import fingerprint_of
from cluster.identity.api_keys import ApiKey, ApiKeyAuthenticator, create_key
from cluster.identity.authorization_server import AuthorizationServer
from cluster.identity.embedded_key_set import EmbeddedKeySet
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.key_set import ALGORITHMS, KeySet, TrustedIssuer
from cluster.identity.remote_key_set import RemoteKeySet
from cluster.identity.revocations import Revocations
from cluster.identity.roles import Scope
from cluster.identity.token_authentication import TokenAuthenticator
from cluster.identity.token_issuer import IssuedToken, TokenIssuer
from cluster.identity.token_verifier import TokenVerifier
from cluster.journal.audit_event import AuditEvent

OURS = TrustedIssuer("http://127.0.0.1:8080", "sovereign", ours=True)
THEIRS = TrustedIssuer("https://login.example", "sovereign-api", "org", "team")
LEEWAY_S = 5
# Made once: an RSA key takes a tenth of a second.
RSA = RSAKey.generate_key(2048, {"alg": "RS256", "use": "sig"}, auto_kid=True)
EC = ECKey.generate_key("P-256", {"alg": "ES256"}, auto_kid=True)
ED = OKPKey.generate_key("Ed25519", {"alg": "EdDSA"}, auto_kid=True)


def jwks(*keys: Key) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def encode(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(segment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return found


class _Any(jws.JWSRegistry):
    """Signs whatever a test wants signed."""

    max_header_length = 1 << 20

    def check_header(self, header: dict[str, Any]) -> None:
        pass

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def sign(header: dict[str, Any], claims: object, key: Key, *, alg: str = "") -> str:
    """Return a token signed with `key` by `alg`, whatever its header says."""
    return sign_as_is(f"{encode(header)}.{encode(claims)}", key, alg or header["alg"])


def sign_as_is(signing_input: str, key: Key, alg: str) -> str:
    """Return the token of a header and a body that are encoded already, whatever they are."""
    return f"{signing_input}.{encode(_Any.algorithms[alg].sign(signing_input.encode(), key))}"


class Identity:
    """One process's identity parts under a folder, as the wiring has them, by a clock of the test's."""

    def __init__(self, folder: Path, clock: FakeClock, key_set: KeySet | None = None) -> None:
        self.folder = folder
        self.clock = clock
        self.store = SqliteCoordination(folder / "coordination.sqlite")
        self.keys = EmbeddedKeySet(folder / "secrets" / "token-keys.json", OURS, clock)
        self.published = jwks(RSA, EC, ED)
        self.fetched: list[str] = []
        self.theirs = key_set or RemoteKeySet(
            "https://login.example/jwks", THEIRS, clock, algorithms=ALGORITHMS, max_age_s=3600, fetch=self._fetch
        )
        self.verifier = TokenVerifier([self.keys, self.theirs], clock, algorithms=ALGORITHMS, leeway_s=LEEWAY_S)
        self.revocations = Revocations(self.store, clock)
        self.api_keys = ApiKeyAuthenticator(self.store, clock)
        self.authenticator = TokenAuthenticator(self.api_keys, self.verifier, self.revocations, clock)
        self.issuer = TokenIssuer(self.keys, OURS, clock, life_s=900)
        self.facts: list[AuditEvent] = []
        self.suspended: set[str] = set()
        self.server = AuthorizationServer(
            OURS,
            api_keys=self.api_keys,
            require_active=self._require_active,
            keys=self.keys,
            tokens=self.issuer,
            verifier=self.verifier,
            revocations=self.revocations,
            clock=clock,
            record=self.facts.append,
        )

    def _require_active(self, tenant: TenantId) -> None:
        if tenant in self.suspended:
            raise TenantSuspendedError(f"Tenant {tenant} is suspended.")

    def _fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        return json.dumps(self.published).encode()

    @property
    def now_s(self) -> int:
        return self.clock.now_us() // 1_000_000

    def api_key(self, tenant: str = "acme", scopes: frozenset[Scope] = frozenset(Scope), ttl_s: int = 0) -> tuple[str, ApiKey]:
        return create_key(
            self.store, self.clock, tenant=TenantId(tenant), project=ProjectId("growth"), scopes=scopes, ttl_s=ttl_s
        )

    def issue(self, key: ApiKey, *, scopes: AbstractSet[Scope] | None = None, life_s: int | None = None) -> IssuedToken:
        """Return a token that was got with the secret of now."""
        secret = fingerprint_of(key.digest)
        return self.issuer.issue(key.principal, key.key_id, secret, scopes=scopes, life_s=life_s)

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Claims of the other issuer's token, which hold; a change to None leaves the claim out."""
        said = {
            "iss": THEIRS.issuer,
            "aud": THEIRS.audience,
            "sub": "ada@example.com",
            "client_id": "console",
            "org": "acme",
            "team": "growth",
            "scope": "openid sovereign:agents:invoke sovereign:agents:read",
            "iat": self.now_s,
            "exp": self.now_s + 600,
            "jti": "t-1",
        } | changed
        return {name: value for name, value in said.items() if value is not None}

    def header(self, key: Key = RSA, **changed: Any) -> dict[str, Any]:
        return {"alg": key.alg, "typ": "at+jwt", "kid": key.kid} | changed

    def token(self, key: Key = RSA, header: dict[str, Any] | None = None, **claims: Any) -> str:
        return sign(self.header(key, **(header or {})), self.claims(**claims), key, alg=str(key.alg))

    def know_theirs(self) -> None:
        """Have the other issuer's keys, as after the first call of a gateway."""
        try:
            self.theirs.find("")
        except Exception as away:
            fetch = getattr(away, "fetch", None)
            assert fetch is not None
            fetch.result(10)

    def close(self) -> None:
        self.store.close()
