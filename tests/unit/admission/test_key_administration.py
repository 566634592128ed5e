"""API keys as those see and change them who administer a tenant: their own, and with no more rights than they have."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.active_tenants import ActiveTenants, TenantSuspendedError
from cluster.admission.registrar import Registrar
from cluster.clock import FakeClock, SystemClock
from cluster.coordination.sqlite_coordination import SqliteCoordination
from cluster.errors import AdmissionDeniedError, NotFoundError, UnauthenticatedError
from cluster.identity.api_keys import ApiKeyAuthenticator
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role, Scope
from tests.governors import begin, facts, open_store, principal

OPERATOR = principal(scopes=ROLE_SCOPES[Role.OPERATOR])
ACME, GLOBEX = (Principal(TenantId(t), ProjectId("default"), f"key:{t}", ROLE_SCOPES[Role.ADMIN]) for t in ("acme", "globex"))


@pytest.fixture
def store(tmp_path: Path) -> SqliteCoordination:
    return open_store(tmp_path)


@pytest.fixture
def registrar(tmp_path: Path, store: SqliteCoordination) -> Iterator[Registrar]:
    """A governor, with the tenants acme and globex."""
    opened = begin(tmp_path, store=store)
    for tenant in ("acme", "globex"):
        ask(opened, "tenants.make", {"tenant_id": tenant, "plan": "standard"})
    yield opened
    opened.close()
    gc.collect()


def ask(registrar: Registrar, operation: str, body: Any = None, who: Principal = OPERATOR, **named: str) -> Any:
    return registrar.tenancy.answer(who, operation, named, b"" if body is None else json.dumps(body).encode())


def make(registrar: Registrar, who: Principal = ACME, **more: Any) -> dict[str, Any]:
    body = {"name": "laptop"} | ({} if "scopes" in more else {"role": "caller"}) | more
    made: dict[str, Any] = ask(registrar, "keys.make", body, who)
    return made


def let_in(store: SqliteCoordination, key: str) -> Principal:
    return ApiKeyAuthenticator(store, SystemClock()).authenticate(f"Bearer {key}")


def test_a_key_is_shown_once_and_known_again_by_its_end(registrar: Registrar, store: SqliteCoordination, tmp_path: Path) -> None:
    """Its text is in the answer that made it, and nowhere else: not in a list, a fact or the store."""
    made = make(registrar, expires_in_s=60)
    assert let_in(store, made["key"]) == Principal(
        TenantId("acme"), ProjectId("default"), f"key:{made['key_id']}", made_scopes(made)
    )
    secret = made.pop("key").rpartition("-")[2]
    assert made["last4"] == secret[-4:]
    assert (made["name"], made["role"], made["state"], made["tenant"], made["project"]) == (
        "laptop",
        "caller",
        "active",
        "acme",
        "default",
    )
    assert made["expires_at"] > made["created_at"]
    assert ask(registrar, "keys.list", who=ACME) == {"keys": [made], "next": ""}
    assert ask(registrar, "keys.show", who=ACME, key_id=made["key_id"]) == made
    registrar.close()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def made_scopes(made: dict[str, Any]) -> frozenset[Scope]:
    return frozenset(map(Scope, made["scopes"]))


def test_what_is_anothers_is_not_there(registrar: Registrar) -> None:
    """Control: find_key and KeyAdministration._whose. A foreign key and a foreign tenant are as one that does not exist."""
    mine = make(registrar)["key_id"]
    said: dict[str, set[str]] = {}
    for operation, body in (("keys.show", None), ("keys.rotate", {"overlap_s": 0}), ("keys.revoke", None)):
        for key_id in (mine, "0" * 16):
            with pytest.raises(NotFoundError) as refused:
                ask(registrar, operation, body, GLOBEX, key_id=key_id)
            said.setdefault(operation, set()).add(str(refused.value).replace(key_id, "ID"))
    for tenant in ("acme", "nobody"):
        for operation, body in (("keys.list", None), ("keys.make", {"name": "k", "role": "caller", "tenant_id": tenant})):
            with pytest.raises(NotFoundError) as refused:
                ask(registrar, operation, body, GLOBEX, **({} if body else {"tenant_id": tenant}))
            said.setdefault(operation, set()).add(str(refused.value).replace(tenant, "ID"))
    assert [len(words) for words in said.values()] == [1] * 5
    assert ask(registrar, "keys.list", who=GLOBEX)["keys"] == []
    assert ask(registrar, "keys.show", who=ACME, key_id=mine)["state"] == "active"


def test_an_operator_makes_a_tenants_first_key(registrar: Registrar, store: SqliteCoordination) -> None:
    """And administers its keys by naming it, in any project that it has."""
    ask(registrar, "projects.make", {"project_id": "web"}, tenant_id="acme")
    first = make(registrar, OPERATOR, tenant_id="acme", role="admin", project_id="web")
    who = let_in(store, first["key"])
    assert (who.tenant, who.project, who.scopes) == ("acme", "web", ROLE_SCOPES[Role.ADMIN])
    assert [k["key_id"] for k in ask(registrar, "keys.list", tenant_id="acme")["keys"]] == [first["key_id"]]
    assert ask(registrar, "keys.revoke", tenant_id="acme", key_id=first["key_id"])["state"] == "revoked"
    with pytest.raises(NotFoundError):
        make(registrar, OPERATOR, tenant_id="acme", project_id="other")


def test_nobody_gives_or_takes_over_more_rights_than_they_have(registrar: Registrar) -> None:
    """Control: KeyAdministration._within. Neither by a new key, nor by a new secret of a key that has more."""
    strong = make(registrar, role="admin")["key_id"]
    weak = Principal(ACME.tenant, ACME.project, "key:weak", frozenset({Scope.KEYS_MANAGE, Scope.AGENTS_READ}))
    for operation, body in (
        ("keys.make", {"name": "k", "role": "admin"}),
        ("keys.make", {"name": "k", "scopes": [Scope.AGENTS_REMOVE]}),
        ("keys.rotate", {"overlap_s": 0}),
        ("keys.revoke", None),
    ):
        with pytest.raises(AdmissionDeniedError):
            ask(registrar, operation, body, weak, key_id=strong)
    assert make(registrar, weak, scopes=[Scope.AGENTS_READ])["role"] is None
    for who, more in ((ACME, {}), (OPERATOR, {"tenant_id": "acme"})):
        with pytest.raises(AdmissionDeniedError) as refused:
            make(registrar, who, role="operator", **more)
        assert [e.field for e in refused.value.errors] == [Scope.TENANTS_MANAGE]
    with pytest.raises(AdmissionDeniedError):
        make(registrar, Principal(ACME.tenant, ACME.project, "key:caller", ROLE_SCOPES[Role.CALLER]))


def test_a_rotated_key_keeps_its_name_and_both_secrets_for_the_overlap(registrar: Registrar, store: SqliteCoordination) -> None:
    """The new secret at once, the old one until the overlap ends; who it stands for is the same."""
    made = make(registrar)
    rotated = ask(registrar, "keys.rotate", {"overlap_s": 3600}, ACME, key_id=made["key_id"])
    assert rotated["key"] != made["key"]
    assert rotated["previous_secret_until"] > rotated["created_at"]
    assert let_in(store, rotated["key"]) == let_in(store, made["key"])
    again = ask(registrar, "keys.rotate", {"overlap_s": 0}, ACME, key_id=made["key_id"])
    assert let_in(store, again["key"]).subject == f"key:{made['key_id']}"
    for old in (made["key"], rotated["key"]):
        with pytest.raises(UnauthenticatedError):
            let_in(store, old)


def test_a_key_that_ended_gets_no_new_secret(registrar: Registrar, tmp_path: Path) -> None:
    """And revoking twice is once, on the record too."""
    made = make(registrar)
    for _ in range(2):
        assert ask(registrar, "keys.revoke", who=ACME, key_id=made["key_id"])["state"] == "revoked"
    with pytest.raises(AdmissionDeniedError):
        ask(registrar, "keys.rotate", {"overlap_s": 60}, ACME, key_id=made["key_id"])
    written = [(e.action, e.outcome.value, e.actor) for e in facts(tmp_path) if e.object_id == made["key_id"]]
    assert written == [
        (action, outcome, "key:acme") for action in ("tenancy:key:make", "tenancy:key:revoke") for outcome in ("allowed", "done")
    ]


def test_a_suspended_tenants_credentials_are_refused_within_two_seconds(registrar: Registrar, store: SqliteCoordination) -> None:
    """Control: ActiveTenants. Whoever holds one is told why; the keys of others go on, and resumed it works again."""
    keys = {t: make(registrar, OPERATOR, tenant_id=t)["key"] for t in ("acme", "globex")}
    clock = FakeClock()
    door = ActiveTenants(ApiKeyAuthenticator(store, SystemClock()), store, clock)
    assert door.authenticate(f"Bearer {keys['acme']}").tenant == "acme"
    ask(registrar, "tenants.change", {"state": "suspended"}, tenant_id="acme")
    clock.advance(2_000_000)
    with pytest.raises(TenantSuspendedError):
        door.authenticate(f"Bearer {keys['acme']}")
    with pytest.raises(UnauthenticatedError):
        door.authenticate(f"Bearer {keys['acme'][:-1]}")
    assert door.authenticate(f"Bearer {keys['globex']}").tenant == "globex"
    ask(registrar, "tenants.change", {"state": "active"}, tenant_id="acme")
    clock.advance(2_000_000)
    assert door.authenticate(f"Bearer {keys['acme']}").tenant == "acme"
