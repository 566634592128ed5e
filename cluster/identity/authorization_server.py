"""OAuth 2 for one box, without HTTP: client credentials, token exchange (RFC 8693), revocation (RFC 7009), metadata (RFC 8414).

A client is an API key: its key id is the client_id and its secret part, or the whole key, the client_secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from cluster.clock import Clock
from cluster.errors import (
    FieldError,
    InvalidRequestError,
    InvalidScopeError,
    UnsupportedGrantTypeError,
)
from cluster.identity.access_tokens import AccessToken, TokenRefusedError
from cluster.identity.api_key import digest_of, fingerprint_of
from cluster.identity.authentication import Authenticator, unauthenticated
from cluster.identity.ids import TenantId
from cluster.identity.key_set import SigningKeySet, TrustedIssuer
from cluster.identity.principal import Principal
from cluster.identity.revocations import Revocations
from cluster.identity.roles import Scope
from cluster.identity.token_issuer import IssuedToken, TokenIssuer
from cluster.identity.token_verifier import TokenVerifier
from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome

EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # the name of a kind
_TOKEN_TYPES: Final = (ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt")
MAX_FORM_BYTES: Final = 64 << 10
_MAX_FIELDS: Final = 16
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
_SECONDS: Final = re.compile(r"[0-9]{1,6}")
_CREDENTIALS: Final = frozenset({"client_id", "client_secret"})

# Writes an audit fact to disk; raises when that can't be done, and nothing is done then.
Record = Callable[[AuditEvent], None]


class _Client(NamedTuple):
    """Who proved themselves by an API key, and what names the secret that they did it with."""

    principal: Principal
    secret: str


class AuthorizationServer:
    """Answers the requests of OAuth's endpoints. It writes to disk, so an event loop calls it in a thread."""

    def __init__(
        self,
        issuer: TrustedIssuer,
        *,
        api_keys: Authenticator,
        require_active: Callable[[TenantId], None],
        keys: SigningKeySet,
        tokens: TokenIssuer,
        verifier: TokenVerifier,
        revocations: Revocations,
        clock: Clock,
        record: Record,
    ) -> None:
        self._issuer = issuer
        self._api_keys = api_keys
        # Raises for a tenant that is suspended; the authenticator has asked for the API key's tenant.
        self._require_active = require_active
        self._keys = keys
        self._tokens = tokens
        self._verifier = verifier
        self._revocations = revocations
        self._clock = clock
        self._record = record

    def token(self, body: bytes, authorization: str, *, request_id: str = "") -> dict[str, Any]:
        """Answer POST /oauth/token: a token for an API key, or a narrower one for a token.

        Raises UnauthenticatedError, InvalidScopeError, UnsupportedGrantTypeError, InvalidRequestError, IssuerAwayError.
        """
        form = read_form(body)
        grant = form.pop("grant_type", "")
        if grant == "client_credentials":
            issued = self._client_credentials(form, authorization)
        elif grant == EXCHANGE:
            issued = self._exchange(form, authorization)
        else:
            raise UnsupportedGrantTypeError(
                "The grant_type is not known here.", hint=f"Send grant_type=client_credentials or grant_type={EXCHANGE}."
            )
        said = {
            "expires_s": issued.token.expires_s,
            "scopes": sorted(issued.token.principal.scopes),
        }
        detail = said | ({"exchanged_from": issued.token.ancestors[-1]} if issued.token.ancestors else {})
        self._record(self._event(AuditAction.TOKEN_ISSUE, issued.token.principal, issued.token, request_id, detail))
        answer = {
            "access_token": issued.text,
            "token_type": "Bearer",
            "expires_in": issued.token.expires_s - issued.token.issued_s,
            "scope": " ".join(sorted(issued.token.principal.scopes)),
        }
        return answer | ({"issued_token_type": ACCESS_TOKEN} if grant == EXCHANGE else {})

    def revoke(self, body: bytes, authorization: str, *, request_id: str = "") -> None:
        """Answer POST /oauth/revoke: whoever got a token, or may manage the tenant's keys, ends it early.

        What is no token, or ended already, is as good as revoked, as RFC 7009 has it; and so is another's, of which
        nothing is said. Raises UnauthenticatedError, InvalidRequestError, IssuerAwayError.
        """
        form = read_form(body)
        who = self._client(form, authorization).principal
        text = form.pop("token", "")
        form.pop("token_type_hint", "")
        _refuse_unknown(form)
        if not text:
            raise InvalidRequestError("Nothing was sent to revoke.", errors=[FieldError("token", "is needed")])
        try:
            token = self._verifier.verify_waiting(text)
        except TokenRefusedError:
            return
        own = token.principal.subject == who.subject
        if token.principal.tenant != who.tenant or not (own or Scope.KEYS_MANAGE in who.scopes):
            return
        self._record(self._event(AuditAction.TOKEN_REVOKE, who, token, request_id, {"of": token.principal.subject}))
        self._revocations.revoke(token)

    def jwks(self) -> dict[str, Any]:
        """Return the public keys."""
        return self._keys.public_jwks()

    def metadata(self) -> dict[str, Any]:
        """Return what an OAuth client wants to know of this server."""
        url = self._issuer.issuer
        methods = ["client_secret_basic", "client_secret_post"]
        return {
            "issuer": url,
            "token_endpoint": f"{url}/oauth/token",
            "token_endpoint_auth_methods_supported": methods,
            "revocation_endpoint": f"{url}/oauth/revoke",
            "revocation_endpoint_auth_methods_supported": methods,
            "jwks_uri": f"{url}/.well-known/jwks.json",
            "grant_types_supported": ["client_credentials", EXCHANGE],
            "response_types_supported": [],
            "scopes_supported": sorted(Scope),
        }

    def _client_credentials(self, form: dict[str, str], authorization: str) -> IssuedToken:
        client = self._client(form, authorization)
        scopes, life_s = self._wishes(form)
        _refuse_unknown(form)
        client_id = client.principal.subject.removeprefix("key:")
        return self._tokens.issue(client.principal, client_id, client.secret, scopes=scopes, life_s=life_s)

    def _exchange(self, form: dict[str, str], authorization: str) -> IssuedToken:
        """Whoever has a token may have less of it, without being a client; who says that they are one must be."""
        client = self._client(form, authorization) if authorization or _CREDENTIALS & form.keys() else None
        text, kind = form.pop("subject_token", ""), form.pop("subject_token_type", "")
        wanted = form.pop("requested_token_type", ACCESS_TOKEN)
        if not text or kind not in _TOKEN_TYPES or wanted not in _TOKEN_TYPES:
            wrong = [FieldError("subject_token", "is needed")] if not text else []
            wrong += [FieldError("subject_token_type", f"must be {ACCESS_TOKEN}")] if kind not in _TOKEN_TYPES else []
            wrong += [FieldError("requested_token_type", f"must be {ACCESS_TOKEN}")] if wanted not in _TOKEN_TYPES else []
            raise InvalidRequestError("The exchange is not of the form that was asked for.", errors=wrong)
        scopes, life_s = self._wishes(form)
        _refuse_unknown(form)
        subject = self._holding(text)
        if client is not None and client.principal.tenant != subject.principal.tenant:
            raise _no_subject()
        self._require_active(subject.principal.tenant)
        return self._tokens.exchange(subject, scopes=scopes, life_s=life_s)

    def _holding(self, text: str) -> AccessToken:
        """Return what the subject token says; raises InvalidRequestError in the same words whatever is wrong with it."""
        try:
            subject = self._verifier.verify_waiting(text)
        except TokenRefusedError:
            raise _no_subject() from None
        if self._revocations.is_revoked(subject):
            raise _no_subject()
        return subject

    def _wishes(self, form: dict[str, str]) -> tuple[frozenset[Scope] | None, int | None]:
        """Return the scopes and the life that are asked for, None for what is not said."""
        if form.pop("audience", self._issuer.audience) != self._issuer.audience:
            raise InvalidRequestError(
                "Tokens for another audience are not made here.",
                errors=[FieldError("audience", f"must be {self._issuer.audience}")],
            )
        asked, seconds = form.pop("scope", None), form.pop("expires_in", None)
        if seconds is not None and not _SECONDS.fullmatch(seconds):
            raise InvalidRequestError("The life is not valid.", errors=[FieldError("expires_in", "must be whole seconds")])
        if asked is not None and (unknown := sorted(set(asked.split(" ")) - set(Scope))):
            raise InvalidScopeError(
                "There is no such scope.", errors=[FieldError("scope", f"{u[:64]!r} is unknown") for u in unknown[:8]]
            )
        scopes = None if asked is None else frozenset(map(Scope, asked.split(" ")))
        return scopes, None if seconds is None else int(seconds)

    def _client(self, form: dict[str, str], authorization: str) -> _Client:
        """Return whose API key it is: in HTTP Basic, in the form, or as a bearer. Raises UnauthenticatedError."""
        if authorization and _CREDENTIALS & form.keys():
            raise InvalidRequestError("The client's credentials were sent in two ways.")
        scheme, _, rest = authorization.partition(" ")
        client_id = ""
        if scheme.lower() == "basic":
            client_id, secret = _basic(rest.strip(" "))
            authorization = _bearer(client_id, secret)
        elif not authorization and form.keys() >= _CREDENTIALS:
            client_id = form.pop("client_id")
            authorization = _bearer(client_id, form.pop("client_secret"))
        principal = self._api_keys.authenticate(authorization)
        if client_id and principal.subject != f"key:{client_id}":
            raise unauthenticated()
        return _Client(principal, fingerprint_of(digest_of(authorization.rpartition("-")[2])))

    def _event(
        self, action: AuditAction, who: Principal, token: AccessToken, request_id: str, detail: Mapping[str, Any]
    ) -> AuditEvent:
        return AuditEvent.new(
            self._clock,
            action,
            AuditOutcome.DONE if action is AuditAction.TOKEN_REVOKE else AuditOutcome.ALLOWED,
            tenant_id=str(who.tenant),
            actor=who.subject,
            object_id=f"token:{token.token_id}",
            request_id=request_id,
            detail=dict(detail),
        )


def _bearer(client_id: str, secret: str) -> str:
    """Return the header that a client's API key makes, whose secret may be its last part or its whole text."""
    if not _KEY_ID.fullmatch(client_id):
        raise unauthenticated()
    return f"Bearer {secret if secret.startswith('sk-sov-') else f'sk-sov-{client_id}-{secret}'}"


def read_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form; raises InvalidRequestError for one that is said twice, or is no form."""
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise InvalidRequestError(
            "The body is no form.", hint="Send application/x-www-form-urlencoded, with grant_type or token in it."
        ) from None
    form = dict(fields)
    if len(form) != len(fields):
        raise InvalidRequestError("A field was sent twice.")
    return form


def _basic(text: str) -> tuple[str, str]:
    """Return id and secret of HTTP Basic, each form-encoded as RFC 6749 has it; raises UnauthenticatedError."""
    try:
        client_id, colon, secret = base64.b64decode(text, validate=True).decode("ascii").partition(":")
    except (binascii.Error, ValueError):
        raise unauthenticated() from None
    if not colon:
        raise unauthenticated()
    return unquote_plus(client_id), unquote_plus(secret)


def _refuse_unknown(form: Mapping[str, str]) -> None:
    if form:
        errors = [FieldError(name[:64], "is unknown") for name in sorted(form)]
        raise InvalidRequestError("The form has fields that are not known here.", errors=errors)


def _no_subject() -> InvalidRequestError:
    return InvalidRequestError("The subject_token is not one that holds.")
