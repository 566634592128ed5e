"""Identity as the wiring puts it together: who gets in by which settings, and which settings are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import wiring
from cluster.admission.active_tenants import TenantSuspendedError
from cluster.admission.tenants import Tenant, TenantState, tenant_path
from cluster.clock import SystemClock
from cluster.coordination.coordination import Create
from cluster.errors import ConfigurationError, UnauthenticatedError
from cluster.identity.api_keys import create_key
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.roles import Scope
from cluster.journal.audit_event import AuditEvent
from cluster.settings import Settings
from tests.governors import open_store

ACME = TenantId("acme")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def key_of(home: Path) -> str:
    store = open_store(home)
    text, _ = create_key(store, SystemClock(), tenant=ACME, project=ProjectId("default"), scopes=frozenset(Scope))
    store.close()
    return text


def token_with(settings: Settings, key: str) -> str:
    facts: list[AuditEvent] = []
    server = wiring.build_authorization_server(settings, facts.append)
    token: str = server.token(b"grant_type=client_credentials", f"Bearer {key}")["access_token"]
    assert len(facts) == 1
    return token


def test_a_token_of_one_gateway_is_taken_by_another(home: Path) -> None:
    """They share a home, and nothing else."""
    settings = Settings.load(home=home)
    token = token_with(settings, key_of(home))
    assert wiring.build_authenticator(settings).authenticate(f"Bearer {token}").tenant == ACME


@pytest.mark.parametrize(
    "changed", [{"public_url": "https://other.example"}, {"token_audience": "other"}, {"token_algorithms": "RS256"}]
)
def test_a_token_is_taken_where_it_was_made_for(home: Path, changed: dict[str, Any]) -> None:
    """Another issuer, another audience, or other signatures than those that are taken: refused."""
    token = token_with(Settings.load(home=home), key_of(home))
    with pytest.raises(UnauthenticatedError):
        wiring.build_authenticator(Settings.load(home=home, **changed)).authenticate(f"Bearer {token}")


def test_a_suspended_tenant_gets_no_token(home: Path) -> None:
    """Neither a new one for its key, nor in by one that it has."""
    settings = Settings.load(home=home)
    key = key_of(home)
    token = token_with(settings, key)
    store = open_store(home)
    store.transact([Create(tenant_path(ACME), Tenant(ACME, "standard", TenantState.SUSPENDED).to_bytes())])
    store.close()
    with pytest.raises(TenantSuspendedError):
        token_with(settings, key)
    with pytest.raises(TenantSuspendedError):
        wiring.build_authenticator(settings).authenticate(f"Bearer {token}")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"token_algorithms": "HS256"}, "SOVEREIGN_TOKEN_ALGORITHMS"),
        ({"token_algorithms": "none"}, "SOVEREIGN_TOKEN_ALGORITHMS"),
        ({"token_algorithms": " , "}, "SOVEREIGN_TOKEN_ALGORITHMS"),
        ({"oidc_issuer": "https://login.example"}, "SOVEREIGN_OIDC_AUDIENCE"),
        ({"oidc_issuer": "https://login.example", "oidc_audience": "x"}, "SOVEREIGN_OIDC_JWKS_URL"),
        (
            {"oidc_issuer": "https://login.example", "oidc_audience": "x", "oidc_jwks_url": "http://login.example"},
            "SOVEREIGN_OIDC_JWKS_URL",
        ),
    ],
    ids=str,
)
def test_a_setting_that_would_let_anybody_in_is_refused(home: Path, changed: dict[str, Any], named: str) -> None:
    """With the setting's name, before anything is served."""
    with pytest.raises(ConfigurationError) as refused:
        wiring.build_authenticator(Settings.load(home=home, **changed))
    assert [e.field for e in refused.value.errors] == [named]
