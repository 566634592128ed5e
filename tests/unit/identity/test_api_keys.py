"""API keys: what is stored of them, who is let in by them, and until when."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from cluster.clock import FakeClock
from cluster.coordination.coordination import Set
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.errors import InvalidRequestError, NotFoundError, UnauthenticatedError
from cluster.identity.api_keys import ApiKey, ApiKeyAuthenticator, change_key, create_key, list_keys, revoke_key
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role, Scope

ACME, GLOBEX, PROJECT = TenantId("acme"), TenantId("globex"), ProjectId("default")
SCOPES = ROLE_SCOPES[Role.CALLER]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteCoordination]:
    store = SqliteCoordination(tmp_path / "c.sqlite")
    yield store
    store.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(store: SqliteCoordination, clock: FakeClock, ttl_s: int = 0) -> tuple[str, ApiKey]:
    return create_key(store, clock, tenant=ACME, project=PROJECT, scopes=SCOPES, ttl_s=ttl_s)


def test_a_key_proves_its_principal(store: SqliteCoordination, clock: FakeClock) -> None:
    """The header with a key gives tenant, project and scopes of that key; the scheme's case does not matter."""
    text, key = make(store, clock)
    for scheme in ("Bearer", "bearer"):
        principal = ApiKeyAuthenticator(store, clock).authenticate(f"{scheme} {text}")
        assert principal == Principal(ACME, PROJECT, f"key:{key.key_id}", SCOPES) == pickle.loads(pickle.dumps(principal))


def test_the_secret_is_kept_nowhere(store: SqliteCoordination, clock: FakeClock, tmp_path: Path) -> None:
    """Neither the stored node nor the file holds the secret, and a principal does not print it."""
    text, key = make(store, clock)
    secret = text.rpartition("-")[2]
    store.close()
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())
    assert secret not in repr(key)


def test_every_failure_says_the_same(store: SqliteCoordination, clock: FakeClock) -> None:
    """No header, another scheme, a wrong secret, an unknown, an expired and a revoked key are told apart by nothing."""
    text, _ = make(store, clock)
    expired, _ = make(store, clock, ttl_s=1)
    revoked, gone = make(store, clock)
    revoke_key(store, clock, tenant=ACME, key_id=gone.key_id)
    clock.advance(1_000_000)
    wrong = text[:-1] + ("0" if text[-1] != "0" else "1")
    unknown = f"sk-sov-{'0' * 16}-{text.rpartition('-')[2]}"
    headers = [
        "",
        "Bearer",
        f"Basic {text}",
        text,
        f"Bearer {text} ",
        f"Bearer {text}\n",
        f"Bearer  {text.upper()}",
        "Bearer é",
        "B" * 9999,
    ]
    said = set()
    for header in [*headers, *(f"Bearer {t}" for t in (wrong, unknown, expired, revoked))]:
        with pytest.raises(UnauthenticatedError) as refused:
            ApiKeyAuthenticator(store, clock).authenticate(header)
        said.add((str(refused.value), tuple(refused.value.errors)))
    assert len(said) == 1


def test_a_revoked_key_is_refused_within_two_seconds(store: SqliteCoordination, clock: FakeClock) -> None:
    """A process that has just seen the key may take it for 2 seconds more, and no longer."""
    text, key = make(store, clock)
    authenticator = ApiKeyAuthenticator(store, clock)
    authenticator.authenticate(f"Bearer {text}")
    assert revoke_key(store, clock, tenant=ACME, key_id=key.key_id).revoked_us
    clock.advance(2_000_000)
    with pytest.raises(UnauthenticatedError):
        authenticator.authenticate(f"Bearer {text}")


def test_an_expired_key_is_refused_at_once_also_from_memory(store: SqliteCoordination, clock: FakeClock) -> None:
    """Expiry is looked at with each request."""
    text, _ = make(store, clock, ttl_s=1)
    authenticator = ApiKeyAuthenticator(store, clock)
    authenticator.authenticate(f"Bearer {text}")
    clock.advance(1_000_000)
    with pytest.raises(UnauthenticatedError):
        authenticator.authenticate(f"Bearer {text}")


def test_a_remembered_key_asks_nobody(store: SqliteCoordination, clock: FakeClock) -> None:
    """Within two seconds of its first use, a key is taken without the store."""
    text, _ = make(store, clock)
    authenticator = ApiKeyAuthenticator(store, clock)
    authenticator.authenticate(f"Bearer {text}")
    store.close()
    assert authenticator.authenticate(f"Bearer {text}").tenant == ACME


def test_a_tenant_sees_and_revokes_only_its_own_keys(store: SqliteCoordination, clock: FakeClock) -> None:
    """Another tenant's key is not there, neither in the list nor to be revoked."""
    _, mine = make(store, clock)
    assert list_keys(store, ACME) == [mine]
    assert list_keys(store, GLOBEX) == []
    for key_id in (mine.key_id, "0" * 16, "../keys", ""):
        with pytest.raises(NotFoundError):
            revoke_key(store, clock, tenant=GLOBEX, key_id=key_id)
    revoked = revoke_key(store, clock, tenant=ACME, key_id=mine.key_id)
    clock.advance(5)
    assert revoke_key(store, clock, tenant=ACME, key_id=mine.key_id) == revoked == replace(mine, revoked_us=revoked.revoked_us)


def test_a_key_without_scopes_is_not_made(store: SqliteCoordination, clock: FakeClock) -> None:
    """A key that allows nothing, or has a negative life, is refused."""
    for scopes, ttl_s in ((frozenset[Scope](), 0), (SCOPES, -1)):
        with pytest.raises(InvalidRequestError):
            create_key(store, clock, tenant=ACME, project=PROJECT, scopes=scopes, ttl_s=ttl_s)


def test_a_new_secret_is_taken_at_once_also_where_the_old_one_is_remembered(store: SqliteCoordination, clock: FakeClock) -> None:
    """A rotation never locks its key's holder out; the old secret ends with its overlap, to the microsecond."""
    text, key = make(store, clock)
    authenticator = ApiKeyAuthenticator(store, clock)
    authenticator.authenticate(f"Bearer {text}")
    new: list[str] = []

    def rotate(found: ApiKey) -> ApiKey:
        said, changed = found.rotated(clock, overlap_s=60)
        new.append(said)
        return changed

    change_key(store, ACME, key.key_id, rotate)
    assert authenticator.authenticate(f"Bearer {new[0]}") == authenticator.authenticate(f"Bearer {text}") == key.principal
    clock.advance(60_000_000 - 1)
    assert authenticator.authenticate(f"Bearer {text}") == key.principal
    clock.advance(1)
    with pytest.raises(UnauthenticatedError):
        authenticator.authenticate(f"Bearer {text}")
    assert authenticator.authenticate(f"Bearer {new[0]}") == key.principal


def test_a_key_of_an_earlier_release_is_read(store: SqliteCoordination, clock: FakeClock) -> None:
    """Before names, roles and rotation there were fewer fields; such a key works as before."""
    text, key = make(store, clock)
    stored = orjson.loads(key.to_bytes())
    for name in ("name", "role", "last4", "previous_digest", "previous_until_us"):
        del stored[name]
    store.transact([Set(f"/keys/{key.key_id}", orjson.dumps(stored))])
    assert ApiKeyAuthenticator(store, clock).authenticate(f"Bearer {text}") == key.principal
    assert list_keys(store, ACME) == [replace(key, last4="")]
