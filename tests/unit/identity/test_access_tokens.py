"""Access tokens: what is taken, and every way to be refused. Nothing tells one refusal from another."""

from __future__ import annotations

import hmac
import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import OKPKey, RSAKey

from cluster.admission.admission import admission_request, invocation_request
from cluster.admission.bundle import load_bundle
from cluster.errors import UnauthenticatedError
from cluster.identity.access_tokens import MAX_LIFE_S, TokenRefusedError
from cluster.identity.api_keys import revoke_key
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role, Scope
from cluster.identity.token_verifier import MAX_TOKEN_CHARS
from tests.governors import DEFAULT, POLICIES, request
from tests.sizes import soak
from tests.tokens import EC, ED, LEEWAY_S, OURS, RSA, Identity, decode, encode, sign, sign_as_is

SECOND = 1_000_000
FUZZ = settings(max_examples=soak(150, 20_000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def taken(identity: Identity, token: str) -> Principal:
    return identity.authenticator.authenticate(f"Bearer {token}")


def why_refused(identity: Identity, token: str) -> str:
    """Return what operators hear of a refusal; what the sender hears must be the one sentence."""
    with pytest.raises(UnauthenticatedError) as refused:
        taken(identity, token)
    with pytest.raises(UnauthenticatedError) as empty:
        taken(identity, "")
    assert refused.value.to_problem() == empty.value.to_problem()
    cause = refused.value.__cause__
    return cause.why if isinstance(cause, TokenRefusedError) else ""


def ours(identity: Identity, scopes: frozenset[Scope] = ROLE_SCOPES[Role.CALLER], life_s: int | None = None) -> str:
    _, key = identity.api_key(scopes=scopes)
    return identity.issue(key, scopes=None, life_s=life_s).text


def forged_ours(identity: Identity, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token of our own issuer with anything in it: signed with the real key, which only the issuer has."""
    good_header, good_claims, _ = ours(identity).split(".")
    return sign(decode(good_header) | header, decode(good_claims) | claims, identity.keys.signing_key())


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=["RS256", "ES256", "EdDSA"])
def test_another_issuers_token_proves_its_principal(identity: Identity, key: Any) -> None:
    """Tenant, project and scopes are the claims'; what is no scope of ours is nothing; the subject is only a digest."""
    who = taken(identity, identity.token(key))
    assert (who.tenant, who.project) == (TenantId("acme"), ProjectId("growth"))
    assert who.scopes == {Scope.AGENTS_INVOKE, Scope.AGENTS_READ}
    assert who.subject.startswith("oidc:")
    assert "ada" not in who.subject


def test_our_token_is_who_got_it(identity: Identity) -> None:
    """A token acts as its API key does."""
    _, key = identity.api_key(scopes=ROLE_SCOPES[Role.DEVELOPER])
    token = identity.issue(key, scopes=None, life_s=None).text
    assert taken(identity, token) == key.principal
    assert identity.authenticator.authenticate(f"bearer  {token}") == key.principal


def test_scopes_reach_the_policy_as_they_are(identity: Identity) -> None:
    """What the policy is asked with is what the token says, no more and no less."""
    _, key = identity.api_key()
    some = frozenset({Scope.AGENTS_INVOKE, Scope.USAGE_READ})
    who = taken(identity, identity.issue(key, scopes=some, life_s=None).text)
    again = Principal.from_json(who.to_json())
    plan = load_bundle(POLICIES).catalog.plan_of(DEFAULT)
    assert plan is not None
    spec = request("a").to_spec(plan.defaults.to_spec_defaults())
    for question in (invocation_request(again, "invoke", "acme"), admission_request(again, spec)):
        asked = orjson.loads(question.input_json)["principal"]
        assert asked["scopes"] == sorted(some)
        assert asked["tenant"] == "acme"


@pytest.mark.parametrize("alg", ["none", "nOnE", "NONE", "None", ""])
@pytest.mark.parametrize("signature", ["", "AA", "valid"])
def test_threat_1_no_signature_is_none(identity: Identity, alg: str, signature: str) -> None:
    """Control: TokenVerifier._key_of, which knows no algorithm but those that are pinned."""
    head, body, valid = ours(identity).split(".")
    forged = f"{encode(decode(head) | {'alg': alg})}.{body}.{valid if signature == 'valid' else signature}"
    assert why_refused(identity, forged)


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_threat_2_a_public_key_is_no_shared_secret(identity: Identity, alg: str) -> None:
    """Control: the key's own algorithms. Signed with every form in which the public key could be taken for a secret."""
    for secret in (RSA.as_pem(private=False), RSA.as_der(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
        signing_input = f"{encode(identity.header(alg=alg))}.{encode(identity.claims())}"
        mac = hmac.new(secret, signing_input.encode(), f"sha{alg[2:]}").digest()
        assert why_refused(identity, f"{signing_input}.{encode(mac)}") == "algorithm"


def test_threat_2_a_key_is_used_with_its_own_algorithm_alone(identity: Identity) -> None:
    """The RSA key signs RS256; PS256 with it, or another key's algorithm, is refused although both are pinned."""
    for alg in ("PS256", "ES256", "EdDSA", "Ed25519"):
        token = sign(identity.header(alg=alg), identity.claims(), RSA, alg="PS256" if alg == "PS256" else "RS256")
        assert why_refused(identity, token) == "algorithm"


@pytest.mark.parametrize("exp", [None, "soon", "1790000600", 1790000600.5, True, -1, 0, [], 10**17], ids=str)
def test_threat_3_a_token_without_an_end_is_none(identity: Identity, exp: object) -> None:
    """Control: read_claims. An end is a whole number of seconds, ahead of now and at most 15 minutes after the beginning."""
    assert why_refused(identity, identity.token(exp=exp)) in {"times", "expired", "life"}


def test_threat_3_an_expired_token_is_refused_also_from_memory(identity: Identity) -> None:
    """To the second, without leeway, whether it was seen before or not."""
    for token in (identity.token(exp=identity.now_s + 1), identity.token(exp=identity.now_s + 1, jti="unseen")):
        if "unseen" not in str(decode(token.split(".")[1])):
            taken(identity, token)
        else:
            identity.clock.advance(SECOND)
            assert why_refused(identity, token) == "expired"
    first = identity.token(exp=identity.now_s + 1)
    taken(identity, first)
    identity.clock.advance(SECOND)
    assert why_refused(identity, first) == "expired"


def test_threat_3_no_token_lives_longer_than_15_minutes(identity: Identity) -> None:
    """Whatever its issuer thinks; ours makes none."""
    taken(identity, identity.token(exp=identity.now_s + MAX_LIFE_S))
    assert why_refused(identity, identity.token(exp=identity.now_s + MAX_LIFE_S + 1)) == "life"
    assert why_refused(identity, identity.token(iat=identity.now_s - 60, exp=identity.now_s + MAX_LIFE_S)) == "life"


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("iss", None),
        ("iss", "https://login.example/"),
        ("iss", OURS.issuer),
        ("iss", ["https://login.example"]),
        ("iss", ""),
        ("aud", None),
        ("aud", "sovereign"),
        ("aud", ["sovereign", "other"]),
        ("aud", []),
        ("aud", {"sovereign-api": 1}),
        ("aud", ""),
    ],
    ids=str,
)
def test_threat_4_a_token_of_or_for_another_is_refused(identity: Identity, claim: str, value: object) -> None:
    """Control: read_claims. Another cluster's token, or one for another service of the same issuer."""
    assert why_refused(identity, identity.token(**{claim: value})) == {"iss": "issuer", "aud": "audience"}[claim]
    taken(identity, identity.token(aud=["other", "sovereign-api"]))


def test_threat_4_one_issuers_key_does_not_sign_for_another(identity: Identity) -> None:
    """The other issuer says that a token is ours, with our issuer, audience and subject: it is theirs, and so it is none."""
    said = decode(ours(identity).split(".")[1])
    assert why_refused(identity, sign(identity.header(), said, RSA)) == "issuer"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_threat_5_a_token_from_the_future_is_refused(identity: Identity, claim: str) -> None:
    """Control: read_claims. As far ahead as the leeway is taken; a second more is not."""
    exp = identity.now_s + 600
    taken(identity, identity.token(exp=exp, **{claim: identity.now_s + LEEWAY_S}))
    assert why_refused(identity, identity.token(exp=exp, **{claim: identity.now_s + LEEWAY_S + 1})) == "not yet"
    for odd in ("now", 1.5, True, [], {}):
        assert why_refused(identity, identity.token(**{claim: odd})) == "times"


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["http://example/unknown"], "http://example/unknown": True},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"crit": []},
        {"crit": "alg"},
        {"crit": None},
        {"crit": ["kid"]},
    ],
    ids=str,
)
def test_threat_6_what_must_be_understood_and_is_not_is_refused(identity: Identity, header: dict[str, Any]) -> None:
    """Control: check_type. Nothing that is critical is known here."""
    assert why_refused(identity, identity.token(header=header)) == "crit"


def test_threat_7_a_key_in_the_token_is_not_looked_at(identity: Identity) -> None:
    """Control: TokenVerifier._key_of. A stranger's key in jwk, x5c or behind jku, x5u opens nothing, and nothing is fetched."""
    stranger = RSAKey.generate_key(2048, {"alg": "RS256"}, auto_kid=True)
    url = "https://evil.example/jwks"
    public = stranger.as_dict(private=False)
    fetched = len(identity.fetched)
    for more in ({"jwk": public}, {"jku": url}, {"x5u": url}, {"x5c": ["AAAA"]}, {"jwk": public, "jku": url, "x5u": url}):
        forged = sign(identity.header(**more), identity.claims(), stranger, alg="RS256")
        assert why_refused(identity, forged).startswith("signature")
        assert why_refused(identity, sign(identity.header(kid=stranger.kid) | more, identity.claims(), stranger)) == "kid"
        # Ignored: beside a good key and signature they do no harm either.
        taken(identity, identity.token(header=more, jti=str(more)[:200]))
    assert set(identity.fetched[fetched:]) <= {"https://login.example/jwks"}


@pytest.mark.parametrize(
    "kid",
    [
        "../token-keys.json",
        "../../etc/passwd",
        "/dev/null",
        "file:///dev/null",
        "https://evil.example/k",
        "a' OR 1=1 --",
        "\x00",
        "",
        "k" * 2000,
        None,
        5,
        [],
        {},
        True,
    ],
    ids=lambda kid: str(kid)[:24].replace("\x00", "NUL"),
)
def test_threat_8_a_key_id_is_a_key_of_a_dictionary(identity: Identity, kid: object) -> None:
    """Control: find. Not a path, an address or a query, and not `the only key` when it is missing."""
    (identity.folder / "secrets" / "evil").write_bytes(RSA.as_pem())
    assert why_refused(identity, identity.token(header={"kid": kid})) == "kid"


@pytest.mark.parametrize(
    "typ", [None, "JWT", "rt+jwt", "refresh", "id_token", "logout+jwt", "at+jwt ", "at+jwt;x=1", "jwt/at+jwt", "", ["at+jwt"], 1]
)
def test_threat_9_another_kind_of_token_gives_no_access(identity: Identity, typ: object) -> None:
    """Control: check_type. A refresh token, an ID token, or one that does not say what it is."""
    assert why_refused(identity, identity.token(header={"typ": typ})) == "type"
    for right in ("at+jwt", "AT+JWT", "application/at+jwt"):
        taken(identity, identity.token(header={"typ": right}))


def test_threat_10_a_huge_token_is_not_parsed(identity: Identity) -> None:
    """Control: the bound of TokenVerifier.verify. 2 MB, of good form and signature, are refused by their length."""
    huge = identity.token(filler="a" * (2 << 20))
    assert len(huge) > 2 << 20
    for text in (huge, "a" * (MAX_TOKEN_CHARS + 1), "." * (2 << 20), "eyJ" * (1 << 20)):
        with pytest.raises(TokenRefusedError) as refused:
            identity.verifier.verify(text)
        assert refused.value.why == "size"
        why_refused(identity, text)


def test_threat_11_a_revoked_token_is_refused_within_two_seconds(identity: Identity) -> None:
    """Control: Revocations.is_revoked. Everywhere: in a process that has just taken it, and in one that never saw it."""
    token = ours(identity)
    taken(identity, token)
    identity.revocations.revoke(identity.verifier.verify(token))
    identity.revocations.revoke(identity.verifier.verify(token))
    identity.clock.advance(2 * SECOND)
    assert why_refused(identity, token) == "revoked"
    other = Identity(identity.folder, identity.clock)
    assert why_refused(other, token) == "revoked"
    other.close()
    taken(identity, ours(identity))


def test_threat_11_what_was_exchanged_ends_with_what_it_came_from(identity: Identity) -> None:
    """The child of a child ends with the first; a parent does not end with its child."""
    parent = identity.verifier.verify(ours(identity))
    child = identity.issuer.exchange(parent, scopes=None, life_s=None)
    grandchild = identity.issuer.exchange(identity.verifier.verify(child.text), scopes=None, life_s=None)
    assert grandchild.token.ancestors == (parent.token_id, child.token.token_id)
    assert taken(identity, grandchild.text) == parent.principal
    identity.revocations.revoke(child.token)
    identity.clock.advance(2 * SECOND)
    assert why_refused(identity, grandchild.text) == why_refused(identity, child.text) == "revoked"
    assert not identity.revocations.is_revoked(parent)


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_threat_11_tokens_end_with_their_api_key(identity: Identity, end: str) -> None:
    """A key that is revoked or over takes what was got with it along, exchanged tokens too."""
    _, key = identity.api_key(ttl_s=10)
    token = identity.issue(key, scopes=None, life_s=None)
    child = identity.issuer.exchange(token.token, scopes=None, life_s=None)
    taken(identity, token.text)
    taken(identity, child.text)
    if end == "revoked":
        revoke_key(identity.store, identity.clock, tenant=key.principal.tenant, key_id=key.key_id)
    identity.clock.advance((2 if end == "revoked" else 10) * SECOND)
    assert why_refused(identity, token.text) == why_refused(identity, child.text) == "revoked"


def test_threat_11_another_issuers_token_can_be_revoked_too(identity: Identity) -> None:
    """By issuer and jti; the same jti of another issuer is another token."""
    token = identity.token()
    taken(identity, token)
    identity.revocations.revoke(identity.verifier.verify(token))
    identity.clock.advance(2 * SECOND)
    assert why_refused(identity, token) == "revoked"
    taken(identity, identity.token(jti="t-2"))


def test_the_deny_list_forgets_what_is_over(identity: Identity) -> None:
    """A revocation is kept for as long as its token could be used, and removed by later ones."""
    old = identity.verifier.verify(identity.token(exp=identity.now_s + 10))
    identity.revocations.revoke(old)
    identity.clock.advance(120 * SECOND)
    new = identity.verifier.verify(identity.token(jti="t-2"))
    identity.revocations.revoke(new)
    assert identity.store.children("/tokens/revoked") == [new.token_id]
    assert len(identity.store.children("/tokens/ends")) == 1


def test_a_remembered_token_costs_no_signature_check(identity: Identity) -> None:
    """Until its end, or until it is revoked: the verifier is not asked again, the deny list once in two seconds."""
    token = ours(identity)
    who = taken(identity, token)
    identity.verifier.verify = None  # type: ignore[method-assign,assignment]
    for _ in range(5):
        identity.clock.advance(2 * SECOND)
        assert taken(identity, token) == who
    identity.store.close()
    identity.clock.advance(SECOND)
    assert taken(identity, token) == who


@pytest.mark.parametrize("claim", ["jti", "sub", "client_id", "org"])
def test_a_token_without_a_needed_claim_is_refused(identity: Identity, claim: str) -> None:
    """What a token must say it says as text."""
    for value in (None, "", 5, [], "x" * 1000):
        assert why_refused(identity, identity.token(**{claim: value})) in {claim, "tenant"}


@pytest.mark.parametrize("tenant", ["Acme", "../acme", "a\x00b", "-a", "a" * 64, "\u0430cme"], ids=ascii)
def test_a_tenant_that_is_no_name_is_refused(identity: Identity, tenant: str) -> None:
    """Whoever the issuer is."""
    assert why_refused(identity, identity.token(org=tenant)) == "tenant"
    assert why_refused(identity, identity.token(team=tenant)) == "tenant"


@pytest.mark.parametrize("subject", ["operator", "governance", "key:1", "oidc:x", "key:0000000000000000\n"])
def test_our_own_tokens_name_a_key(identity: Identity, subject: str) -> None:
    """A subject of another form can't come from our issuer."""
    assert why_refused(identity, forged_ours(identity, {}, {"sub": subject})) == "sub"


def test_claims_and_headers_of_two_meanings_are_refused(identity: Identity) -> None:
    """A key said twice, and what is no object, although the signature is right."""
    key = identity.keys.signing_key()
    head, body, _ = ours(identity).split(".")
    said, claims = decode(head), decode(body)
    twice = json.dumps(claims)[:-1].encode() + b',"tenant":"globex"}'
    for payload in (twice, b"[]", b"5", b"null", b"{", b"\xff", b'{"a":NaN}', b"[" * 5000):
        assert why_refused(identity, sign(said, payload, key))
    for header in (json.dumps(said)[:-1].encode() + b',"typ":"at+jwt"}', b"[]", b'"x"', b"{", b"\xff", b"[" * 3000):
        assert why_refused(identity, sign_as_is(f"{encode(header)}.{body}", key, said["alg"]))


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic abc", "Digest x", "Bearer a b", "Bearer a.b.c d", "\udc80"], ids=ascii
)
def test_what_is_no_bearer_is_refused(identity: Identity, header: str) -> None:
    """In the same words."""
    with pytest.raises(UnauthenticatedError):
        identity.authenticator.authenticate(header)


def test_an_api_key_goes_on_to_work(identity: Identity) -> None:
    """Beside tokens, by the same header."""
    text, key = identity.api_key()
    assert identity.authenticator.authenticate(f"Bearer {text}") == key.principal
    with pytest.raises(UnauthenticatedError):
        identity.authenticator.authenticate(f"Bearer {text[:-1]}x")


@FUZZ
@given(text=st.text(max_size=400) | st.from_regex(r"\A[\w-]{0,40}(\.[\w-]{0,40}){0,4}\Z"))
def test_no_text_breaks_the_parser(identity: Identity, text: str) -> None:
    """Whatever is sent for a token, the answer is a refusal."""
    why_refused(identity, text)


@FUZZ
@given(data=st.data())
def test_no_changed_token_is_taken(identity: Identity, data: st.DataObject) -> None:
    """One character changed, added or left out anywhere: refused."""
    token = identity.token(EC)
    at = data.draw(st.integers(0, len(token) - 1))
    change = data.draw(st.sampled_from("ABab01-_.+/=\n\u0430"))
    changed = data.draw(
        st.sampled_from([token[:at] + change + token[at + 1 :], token[:at] + change + token[at:], token[:at] + token[at + 1 :]])
    )
    if changed != token:
        why_refused(identity, changed)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(
    claims=st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "client_id", "org", "team", "scope", "iat", "nbf", "exp", "jti"]), _JSON, max_size=4
    ),
    header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5c", "cty"]), _JSON, max_size=3),
)
def test_whatever_an_issuer_signs_is_refused_or_keeps_the_rules(
    identity: Identity, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    """With the right key and any claims and headers at all: a refusal, or a principal that the rules allow."""
    said = identity.claims() | claims
    token = sign(identity.header(ED) | header, said, ED, alg="EdDSA")
    try:
        who = taken(identity, token)
    except UnauthenticatedError:
        return
    assert said["iss"] == "https://login.example"
    assert type(said["exp"]) is int
    assert identity.now_s < said["exp"] <= said["iat"] + MAX_LIFE_S
    assert (who.tenant, who.project) == (said["org"], said.get("team", "default"))
    assert who.scopes <= set(said.get("scope", "").split(" "))
    assert not {"crit", "b64"} & header.keys()


def test_a_shared_or_weak_key_of_an_issuer_is_not_used(identity: Identity) -> None:
    """A key set with a secret, a private key, a short key or two keys of one id gives none of them."""
    from cluster.identity.key_set import ALGORITHMS, read_key_set

    private = OKPKey.generate_key("Ed25519", {"kid": "private"}).as_dict(private=True)
    short = RSA.as_dict(private=False) | {"kid": "short", "n": encode(b"\xff" * 128)}
    public = ED.as_dict(private=False)
    document = {
        "keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
            private,
            short,
            public | {"kid": "for encryption", "use": "enc"},
            public | {"kid": "twice"},
            EC.as_dict(private=False) | {"kid": "twice"},
            public | {"kid": ["list"]},
            public | {"kid": "other", "alg": "none"},
            public | {"kid": "broken", "x": "AA"},
            {"kty": "OKP", "crv": "X25519", "x": public["x"], "kid": "agreement"},
            "no key",
            public | {"kid": "good"},
        ]
    }
    assert set(read_key_set(document, OURS, ALGORITHMS)) == {"good"}
    for wrong in ([], {}, {"keys": {}}, {"keys": [{}] * 1000}, None, "x"):
        with pytest.raises(ValueError, match="no list"):
            read_key_set(wrong, OURS, ALGORITHMS)
