"""Authentication that takes no credential of a suspended tenant, whatever kind of credential stands behind it."""

from __future__ import annotations

from threading import Lock
from typing import Final

from cluster.admission.tenants import TenantState, find_made
from cluster.clock import Clock
from cluster.coordination.coordination import Coordination
from cluster.errors import AdmissionDeniedError
from cluster.identity.authentication import Authenticator
from cluster.identity.ids import TenantId
from cluster.identity.principal import Principal

# How long a process may go on taking the keys of a tenant that it has just seen active.
RECHECK_US: Final = 2_000_000
_CACHE_SIZE: Final = 4_096


class TenantSuspendedError(AdmissionDeniedError):
    """The credential is good, and its tenant may do nothing until an operator resumes it."""

    code = "tenant_suspended"


class ActiveTenants:
    """An authenticator before another: who that one knows is let in while their tenant is active.

    It looks at tenants that were made at run time; one that the policy data declares inactive is refused by policy.
    """

    def __init__(self, inner: Authenticator, coordination: Coordination, clock: Clock) -> None:
        self._inner = inner
        self._coordination = coordination
        self._clock = clock
        # By tenants of good credentials alone, so that guesses can't fill it; the oldest goes first.
        self._seen: dict[TenantId, tuple[int, bool]] = {}
        self._lock = Lock()

    def authenticate(self, authorization_header: str) -> Principal:
        """Return who the header proves; raises UnauthenticatedError, TenantSuspendedError within 2 seconds of a suspension."""
        principal = self._inner.authenticate(authorization_header)
        self.require(principal.tenant)
        return principal

    def require(self, tenant: TenantId) -> None:
        """Raise TenantSuspendedError within 2 seconds of the tenant's suspension."""
        if not self._active(tenant):
            raise TenantSuspendedError(
                f"Tenant {tenant} is suspended: nothing of it is lost, and nothing of it runs.", hint="An operator resumes it."
            )

    def _active(self, tenant: TenantId) -> bool:
        now_us = self._clock.monotonic_us()
        seen = self._seen.get(tenant)
        if seen is not None and now_us - seen[0] < RECHECK_US:
            return seen[1]
        made = find_made(self._coordination, tenant)
        active = made is None or made.state is TenantState.ACTIVE
        with self._lock:
            self._seen.pop(tenant, None)
            while len(self._seen) >= _CACHE_SIZE:
                del self._seen[next(iter(self._seen))]
            self._seen[tenant] = (now_us, active)
        return active
