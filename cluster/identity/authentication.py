"""The port of authentication: an `Authorization` header in, a principal out. It fails closed: no answer is no principal."""

from __future__ import annotations

from typing import Protocol

from cluster.errors import UnauthenticatedError
from cluster.identity.principal import Principal


class Authenticator(Protocol):
    """Finds out who asks; safe to use from many threads."""

    def authenticate(self, authorization_header: str) -> Principal:
        """Return who the header proves; raises UnauthenticatedError, in the same words whatever is wrong with it."""
        ...


def unauthenticated() -> UnauthenticatedError:
    """Return the one error of failed authentication: a wrong key, an expired one and none at all look the same."""
    return UnauthenticatedError(
        "The request carries no valid credentials.", hint="Send the header Authorization: Bearer <API key or access token>."
    )
