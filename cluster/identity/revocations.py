"""Tokens that ended before their time: a deny list in the coordination store, which every process of the cluster reads.

The node `/tokens/revoked/<token id>` exists while a token is revoked; `/tokens/ends/<second>-<token id>` lists them by when
their token would have ended by itself, so that what is past can be removed at the cost of what is removed.
"""

from __future__ import annotations

from typing import Final

from cluster.clock import Clock
from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Delete
from cluster.identity.access_tokens import AccessToken
from cluster.identity.api_keys import ApiKey

_REVOKED: Final = "/tokens/revoked"
_ENDS: Final = "/tokens/ends"
# Removed with each new one, so that the list shrinks faster than it grows.
_SWEPT: Final = 16
_KEPT_S: Final = 60


class Revocations:
    """The deny list, and whether a token stands on it."""

    def __init__(self, coordination: Coordination, clock: Clock) -> None:
        self._coordination = coordination
        self._clock = clock

    def is_revoked(self, token: AccessToken) -> bool:
        """Return whether the token ended early: itself, one it was exchanged from, or the API key or the secret behind it."""
        if any(self._coordination.get(f"{_REVOKED}/{each}") for each in (token.token_id, *token.ancestors)):
            return True
        if not token.key_id:
            return False
        node = self._coordination.get(f"/keys/{token.key_id}")
        if node is None:
            return True
        key, now_us = ApiKey.from_bytes(token.key_id, node.value), self._clock.now_us()
        return not key.holds(now_us) or token.secret not in key.fingerprints(now_us)

    def revoke(self, token: AccessToken) -> None:
        """End a token early; to end it twice changes nothing."""
        ends = f"{_ENDS}/{token.expires_s:012d}-{token.token_id}"
        try:
            self._coordination.transact([Create(f"{_REVOKED}/{token.token_id}", b"{}"), Create(ends, b"{}")])
        except CoordinationConflictError:
            if self._coordination.get(f"{_REVOKED}/{token.token_id}") is None:
                raise
        self._sweep()

    def _sweep(self) -> None:
        """Remove some of those whose token is over by itself."""
        over_s = self._clock.now_us() // 1_000_000 - _KEPT_S
        for name in self._coordination.children(_ENDS, limit=_SWEPT):
            ends_s, _, token_id = name.partition("-")
            if int(ends_s) >= over_s:
                return
            try:
                self._coordination.transact([Delete(f"{_ENDS}/{name}"), Delete(f"{_REVOKED}/{token_id}")])
            except CoordinationConflictError:
                continue  # another process was quicker
