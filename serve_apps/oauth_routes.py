"""OAuth's own paths: tokens for API keys, narrower tokens for tokens, revocation, public keys, and what a client may know."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cluster.identity.authorization_server import MAX_FORM_BYTES, AuthorizationServer
from serve_apps.edge import Edge, Handler
from serve_apps.exchange import Exchange
from serve_apps.openapi import summary_of

FORM: Final = "application/x-www-form-urlencoded"
_TEXT: Final = {"type": "string"}
_TOKEN_FORM: Final = dict.fromkeys(
    ("scope", "audience", "client_id", "client_secret", "subject_token", "subject_token_type", "requested_token_type"), _TEXT
) | {"grant_type": _TEXT, "expires_in": {"type": "integer", "minimum": 1}}
_REVOKE_FORM: Final = dict.fromkeys(("token", "token_type_hint", "client_id", "client_secret"), _TEXT)
_TOKEN_ANSWER: Final = {
    "type": "object",
    "required": ["access_token", "token_type", "expires_in", "scope"],
    "properties": dict.fromkeys(("access_token", "token_type", "scope", "issued_token_type"), _TEXT)
    | {"expires_in": {"type": "integer"}},
}


class OAuthRoutes:
    """The handlers under /oauth and /.well-known."""

    def __init__(self, edge: Edge, tokens: AuthorizationServer) -> None:
        self._edge = edge
        self._tokens = tokens

    async def token(self, request: Request, exchange: Exchange) -> Response:
        """POST /oauth/token: an access token for an API key (client credentials), or a narrower one for a token (RFC 8693)."""
        body = await self._edge.body(request, limit=MAX_FORM_BYTES, kind=FORM)
        answer = await asyncio.to_thread(self._tokens.token, body, exchange.authorization, request_id=exchange.request_id)
        return _json(answer, {"cache-control": "no-store"})

    async def revoke(self, request: Request, exchange: Exchange) -> Response:
        """POST /oauth/revoke: end an access token early (RFC 7009); 200 also for what is no token any more."""
        body = await self._edge.body(request, limit=MAX_FORM_BYTES, kind=FORM)
        await asyncio.to_thread(self._tokens.revoke, body, exchange.authorization, request_id=exchange.request_id)
        return _json({}, {"cache-control": "no-store"})

    async def jwks(self, request: Request, exchange: Exchange) -> Response:
        """GET /.well-known/jwks.json: the public keys of this cluster's access tokens."""
        return _json(self._tokens.jwks(), {"cache-control": "public, max-age=60"})

    async def metadata(self, request: Request, exchange: Exchange) -> Response:
        """GET /.well-known/oauth-authorization-server: what an OAuth client wants to know (RFC 8414)."""
        return _json(self._tokens.metadata(), {"cache-control": "public, max-age=60"})

    def add_to(self, app: FastAPI) -> None:
        """Add these routes, with their descriptions, to `app`."""
        table: list[tuple[str, str, Handler, dict[str, Any] | None, list[str], dict[str, Any]]] = [
            ("POST", "/oauth/token", self.token, _TOKEN_FORM, ["grant_type"], _TOKEN_ANSWER),
            ("POST", "/oauth/revoke", self.revoke, _REVOKE_FORM, ["token"], {"type": "object"}),
            ("GET", "/.well-known/jwks.json", self.jwks, None, [], {"type": "object"}),
            ("GET", "/.well-known/oauth-authorization-server", self.metadata, None, [], {"type": "object"}),
        ]
        for method, path, handler, form, needed, answer in table:
            app.add_api_route(
                path,
                self._edge.route(handler, f"{method} {path}", takes_body=form is not None),
                methods=[method],
                response_class=Response,
                response_model=None,
                name=f"oauth_{handler.__name__}",
                summary=summary_of(handler.__doc__ or ""),
                description="",
                openapi_extra=_operation(form, needed, answer),
            )


def _operation(form: dict[str, Any] | None, needed: list[str], answer: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {"schema": answer}}},
            "4XX": {"description": "Refused", "content": problem},
            "5XX": {"description": "Failed", "content": problem},
        }
    }
    if form is not None:
        schema = {"type": "object", "required": needed, "properties": form, "additionalProperties": False}
        extra["requestBody"] = {"required": True, "content": {FORM: {"schema": schema}}}
    return extra


def _json(document: object, headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)
