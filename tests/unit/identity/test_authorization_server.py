"""The embedded issuer: whom it gives what, what it never gives, and what it writes down first."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from cluster.admission.active_tenants import TenantSuspendedError
from cluster.errors import InvalidRequestError, InvalidScopeError, StorageError, UnauthenticatedError, UnsupportedGrantTypeError
from cluster.identity.api_keys import ApiKey, change_key
from cluster.identity.authorization_server import ACCESS_TOKEN, EXCHANGE, AuthorizationServer
from cluster.identity.roles import ROLE_SCOPES, Role, Scope
from cluster.journal.audit_event import AuditAction, AuditEvent
from tests.tokens import OURS, Identity

SECOND = 1_000_000
CALLER = ROLE_SCOPES[Role.CALLER]


def form(**fields: Any) -> bytes:
    return urlencode(fields).encode()


GRANT = form(grant_type="client_credentials")


def client(identity: Identity, **fields: Any) -> dict[str, Any]:
    """Ask for a token with a new key of a caller."""
    text, _ = identity.api_key(scopes=CALLER)
    return identity.server.token(form(grant_type="client_credentials", **fields), f"Bearer {text}")


def exchange(identity: Identity, token: str, authorization: str = "", **fields: Any) -> dict[str, Any]:
    asked = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN} | fields
    return identity.server.token(form(**asked), authorization)


def basic(client_id: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


def test_a_client_gets_a_token_in_each_of_the_ways(identity: Identity) -> None:
    """By HTTP Basic, in the form or as a bearer; with the secret part of the key or the whole of it."""
    text, key = identity.api_key(scopes=CALLER)
    secret = text.rpartition("-")[2]
    grant = {"grant_type": "client_credentials"}
    ways = [
        (grant, f"Bearer {text}"),
        (grant, basic(key.key_id, secret)),
        (grant, basic(key.key_id, text)),
        (grant | {"client_id": key.key_id, "client_secret": secret}, ""),
        (grant | {"client_id": key.key_id, "client_secret": text}, ""),
    ]
    for fields, authorization in ways:
        answer = identity.server.token(form(**fields), authorization)
        assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 900)
        assert set(answer["scope"].split()) == set(CALLER)
        assert identity.authenticator.authenticate(f"Bearer {answer['access_token']}") == key.principal


def test_a_client_that_is_none_gets_nothing(identity: Identity) -> None:
    """A wrong secret, an unknown id, another key's secret, two ways at once: 401 or 400, and no fact of a token."""
    text, key = identity.api_key()
    other, _ = identity.api_key()
    grant = {"grant_type": "client_credentials"}
    wrong = [
        (grant, ""),
        (grant, "Bearer x"),
        (grant, f"Bearer {text[:-1]}x"),
        (grant, basic(key.key_id, "0" * 64)),
        (grant, basic(key.key_id, other)),
        (grant, basic("../keys", "x")),
        (grant, "Basic !!!"),
        (grant, "Basic " + base64.b64encode(b"no colon").decode()),
        (grant | {"client_id": key.key_id}, ""),
        (grant | {"client_id": key.key_id, "client_secret": ""}, ""),
    ]
    for fields, authorization in wrong:
        with pytest.raises(UnauthenticatedError):
            identity.server.token(form(**fields), authorization)
    with pytest.raises(InvalidRequestError):
        identity.server.token(form(client_id=key.key_id, client_secret=text, **grant), f"Bearer {text}")
    # A token is no client: with it one gets narrower ones alone.
    token = client(identity)["access_token"]
    identity.facts.clear()
    with pytest.raises(UnauthenticatedError):
        identity.server.token(form(**grant), f"Bearer {token}")
    assert identity.facts == []


def test_threat_12_a_client_gets_no_more_than_its_key_has(identity: Identity) -> None:
    """Control: token_issuer._narrowed. A scope that the key lacks, or that is none, is invalid_scope, which is a 400."""
    assert client(identity, scope="sovereign:agents:invoke")["scope"] == "sovereign:agents:invoke"
    for scope in ("sovereign:keys:manage", "sovereign:agents:invoke sovereign:audit:read", "admin", "", "*", "a  b"):
        with pytest.raises(InvalidScopeError) as refused:
            client(identity, scope=scope)
        assert (refused.value.status, refused.value.code) == (400, "invalid_scope")
    for seconds in ("901", "0", "-1", "1e3", "soon", "9" * 9, "\u0663"):
        with pytest.raises(InvalidRequestError):
            client(identity, expires_in=seconds)


def test_an_exchange_narrows_scopes_and_life(identity: Identity) -> None:
    """The new token is for the same principal, with less of it, and ends with the one that it came from."""
    parent = client(identity, expires_in=300)["access_token"]
    answer = exchange(identity, parent, scope="sovereign:agents:read", expires_in=60)
    assert (answer["scope"], answer["expires_in"], answer["issued_token_type"]) == ("sovereign:agents:read", 60, ACCESS_TOKEN)
    whole = identity.authenticator.authenticate(f"Bearer {parent}")
    part = identity.authenticator.authenticate(f"Bearer {answer['access_token']}")
    assert part.scopes == {Scope.AGENTS_READ}
    assert (part.tenant, part.project, part.subject) == (whole.tenant, whole.project, whole.subject)
    identity.clock.advance(100 * SECOND)
    assert exchange(identity, parent)["expires_in"] == 200


def test_threat_12_an_exchange_gives_no_wider_scope(identity: Identity) -> None:
    """Control: token_issuer._narrowed. 400 invalid_scope, also for what the parent's own API key would have had."""
    text, _ = identity.api_key()
    narrow = identity.server.token(form(grant_type="client_credentials", scope="sovereign:agents:read"), f"Bearer {text}")
    for scope in ("sovereign:agents:invoke", "sovereign:agents:read sovereign:keys:manage", "sovereign:agents:*", ""):
        for authorization in ("", f"Bearer {text}"):
            with pytest.raises(InvalidScopeError) as refused:
                exchange(identity, narrow["access_token"], authorization, scope=scope)
            assert (refused.value.status, refused.value.code) == (400, "invalid_scope")


def test_threat_12_an_exchange_gives_no_longer_life(identity: Identity) -> None:
    """Control: TokenIssuer.exchange. Longer than what is left of the parent is 400 invalid_request, by a second too."""
    parent = client(identity, expires_in=300)["access_token"]
    identity.clock.advance(100 * SECOND)
    assert exchange(identity, parent, expires_in=200)["expires_in"] == 200
    for seconds in (201, 300, 900, 901, 0):
        with pytest.raises(InvalidRequestError) as refused:
            exchange(identity, parent, expires_in=seconds)
        assert (refused.value.status, refused.value.code) == (400, "invalid_request")


def test_a_chain_of_exchanges_has_an_end(identity: Identity) -> None:
    """Four times, so that one revocation reaches all of it at a known cost."""
    token = client(identity)["access_token"]
    for _ in range(4):
        token = exchange(identity, token)["access_token"]
    identity.authenticator.authenticate(f"Bearer {token}")
    with pytest.raises(InvalidRequestError, match="4 times"):
        exchange(identity, token)


def test_what_does_not_hold_is_not_exchanged(identity: Identity) -> None:
    """An expired, revoked or forged token, an API key, another type of token: 400, in the same words for every token."""
    text, _ = identity.api_key()
    expired = client(identity, expires_in=1)["access_token"]
    identity.clock.advance(SECOND)
    revoked = client(identity)["access_token"]
    identity.revocations.revoke(identity.verifier.verify(revoked))
    said = set()
    for token in (expired, revoked, revoked[:-3], text, "x", "a.b.c"):
        with pytest.raises(InvalidRequestError) as refused:
            exchange(identity, token)
        said.add(str(refused.value))
    assert len(said) == 1
    good = client(identity)["access_token"]
    for fields in (
        {"subject_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"subject_token_type": ""},
        {"subject_token": ""},
        {"actor_token": good},
        {"audience": "elsewhere"},
        {"resource": "https://elsewhere"},
    ):
        with pytest.raises(InvalidRequestError):
            exchange(identity, good, **fields)


def test_a_client_of_another_tenant_exchanges_nothing(identity: Identity) -> None:
    """Who says that they are a client must be one, and of the token's tenant."""
    token = client(identity)["access_token"]
    foreign, _ = identity.api_key(tenant="globex")
    with pytest.raises(InvalidRequestError, match="not one that holds"):
        exchange(identity, token, f"Bearer {foreign}")
    with pytest.raises(UnauthenticatedError):
        exchange(identity, token, "Bearer nonsense")


def test_another_issuers_token_is_exchanged_for_one_of_ours(identity: Identity) -> None:
    """Its subject stays; it ends with the token that it came from."""
    token = identity.token()
    answer = exchange(identity, token, scope="sovereign:agents:read")
    assert identity.authenticator.authenticate(f"Bearer {answer['access_token']}").subject.startswith("oidc:")
    identity.revocations.revoke(identity.verifier.verify(token))
    identity.clock.advance(2 * SECOND)
    with pytest.raises(UnauthenticatedError):
        identity.authenticator.authenticate(f"Bearer {answer['access_token']}")


def test_a_token_is_revoked_by_who_got_it_or_its_administrator(identity: Identity) -> None:
    """Nobody else's request does anything, and none of them hears which tokens there are."""
    text, key = identity.api_key(scopes=CALLER)
    peer, _ = identity.api_key(scopes=CALLER)
    admin, _ = identity.api_key()
    foreign, _ = identity.api_key(tenant="globex")
    for who, ends in ((foreign, False), (peer, False), (text, True), (admin, True)):
        issued = identity.issue(key, scopes=None, life_s=None)
        for token in (issued.text, "nonsense", issued.text[:-2]):
            identity.server.revoke(form(token=token, token_type_hint="access_token"), f"Bearer {who}")
        assert identity.revocations.is_revoked(issued.token) == ends
    assert [f.action for f in identity.facts] == [AuditAction.TOKEN_REVOKE] * 2
    with pytest.raises(UnauthenticatedError):
        identity.server.revoke(form(token="x"), "")
    with pytest.raises(InvalidRequestError):
        identity.server.revoke(form(token_type_hint="x"), f"Bearer {text}")


def test_each_token_leaves_one_fact_without_the_token(identity: Identity) -> None:
    """Who got it, for what, until when, from which; by an id that is no secret."""
    parent = client(identity)["access_token"]
    child = exchange(identity, parent)["access_token"]
    first, second = identity.facts
    assert first.action == second.action == AuditAction.TOKEN_ISSUE
    assert (first.tenant_id, first.actor[:4]) == ("acme", "key:")
    assert second.detail["exchanged_from"] == identity.verifier.verify(parent).token_id
    text = json.dumps([f.to_body() for f in identity.facts])
    for token in (parent, child):
        assert all(part not in text for part in token.split("."))


def test_what_cannot_be_recorded_does_not_happen(identity: Identity) -> None:
    """On a full disk no token is given out, and none is revoked."""

    def full(_: AuditEvent) -> None:
        raise StorageError("The disk is full.")

    text, key = identity.api_key()
    server = AuthorizationServer(
        OURS,
        api_keys=identity.api_keys,
        require_active=lambda tenant: None,
        keys=identity.keys,
        tokens=identity.issuer,
        verifier=identity.verifier,
        revocations=identity.revocations,
        clock=identity.clock,
        record=full,
    )
    with pytest.raises(StorageError):
        server.token(form(grant_type="client_credentials"), f"Bearer {text}")
    issued = identity.issue(key, scopes=None, life_s=None)
    with pytest.raises(StorageError):
        server.revoke(form(token=issued.text), f"Bearer {text}")
    assert not identity.revocations.is_revoked(issued.token)


@pytest.mark.parametrize("body", [b"\xff", b"grant_type", b"&&&", b"a=1&" * 100, b"%ff=1", b"grant_type=%ff", b"{}"])
def test_what_is_no_form_is_refused(identity: Identity, body: bytes) -> None:
    """With 400, whatever it is."""
    with pytest.raises((InvalidRequestError, UnsupportedGrantTypeError)):
        identity.server.token(body, "")


def test_a_field_twice_or_unknown_is_refused(identity: Identity) -> None:
    """As RFC 6749 has it for what is said twice; and a misspelled scope must not mean all of them."""
    text, _ = identity.api_key()
    for body in (
        b"grant_type=client_credentials&grant_type=client_credentials",
        b"grant_type=client_credentials&scope=sovereign:agents:read&scope=sovereign:agents:invoke",
        b"grant_type=client_credentials&scopes=sovereign:agents:read",
    ):
        with pytest.raises(InvalidRequestError):
            identity.server.token(body, f"Bearer {text}")
    for grant in ("password", "authorization_code", "refresh_token", "CLIENT_CREDENTIALS", ""):
        with pytest.raises(UnsupportedGrantTypeError):
            identity.server.token(form(grant_type=grant), f"Bearer {text}")


def test_a_token_ends_with_the_secret_that_it_was_got_with(identity: Identity) -> None:
    """Control: Revocations.is_revoked. A rotation's overlap ends the old secret's tokens, and those exchanged from them."""
    text, key = identity.api_key()
    old = identity.server.token(GRANT, f"Bearer {text}")["access_token"]
    fresh = ""

    def rotated(found: ApiKey) -> ApiKey:
        nonlocal fresh
        fresh, changed = found.rotated(identity.clock, overlap_s=60)
        return changed

    change_key(identity.store, key.principal.tenant, key.key_id, rotated)
    new = identity.server.token(GRANT, f"Bearer {fresh}")["access_token"]
    late = identity.server.token(GRANT, f"Bearer {text}")["access_token"]
    child = exchange(identity, old)["access_token"]
    for token in (old, new, late, child):
        assert identity.authenticator.authenticate(f"Bearer {token}").subject == key.principal.subject
    identity.clock.advance(61_000_000)
    assert identity.authenticator.authenticate(f"Bearer {new}")
    for token in (old, late, child):
        with pytest.raises(UnauthenticatedError):
            identity.authenticator.authenticate(f"Bearer {token}")


def test_a_suspended_tenants_token_is_not_exchanged(identity: Identity) -> None:
    """Control: what `require_active` raises, also for who sends no credential but the token."""
    text, _ = identity.api_key()
    token = identity.server.token(GRANT, f"Bearer {text}")["access_token"]
    identity.suspended.add("acme")
    with pytest.raises(TenantSuspendedError):
        exchange(identity, token)
