"""Budgets and limits of projects and keys, as those set them who administer a tenant."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.allowances import Allowance
from cluster.admission.registrar import Registrar
from cluster.errors import AdmissionDeniedError, IntegrityError, InvalidRequestError, NotFoundError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import ROLE_SCOPES, Role
from cluster.journal.audit_event import AuditAction
from cluster.limits.callers import NO_TERMS, Rate
from cluster.limits.terms import Bound
from cluster.limits.windows import Window
from tests.governors import begin, facts, open_store, principal

OPERATOR = principal(scopes=ROLE_SCOPES[Role.OPERATOR])
ACME = Principal(TenantId("acme"), ProjectId("default"), "key:acme", ROLE_SCOPES[Role.ADMIN])
BUDGET = {"day": {"tokens": 1_000}, "total": {"micro_usd": 5_000_000}}
LIMITS = {"requests_per_minute": 60, "concurrency": 2}
# What earlier releases have written stays readable.
GOLDEN = (
    b'{"version":1,"budget":{"day":{"tokens":1000},"total":{"micro_usd":5000000}},'
    b'"limits":{"requests_per_minute":60,"concurrency":2}}'
)


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    opened = begin(tmp_path, store=open_store(tmp_path))
    ask(opened, "tenants.make", {"tenant_id": "acme", "plan": "standard"})
    yield opened
    opened.close()
    gc.collect()


def ask(registrar: Registrar, operation: str, body: Any = None, who: Principal = OPERATOR, **named: str) -> Any:
    return registrar.tenancy.answer(who, operation, named, b"" if body is None else json.dumps(body).encode())


def test_a_projects_bounds_are_set_shown_changed_and_kept(registrar: Registrar, tmp_path: Path) -> None:
    """What is given takes the place of what there was, the rest stays; a later governor knows it, and each change is a fact."""
    made = ask(registrar, "projects.make", {"project_id": "web", "budget": BUDGET}, tenant_id="acme")
    assert made == {"tenant_id": "acme", "project_id": "web", "budget": BUDGET, "limits": {}}
    changed = ask(registrar, "projects.change", {"limits": LIMITS}, tenant_id="acme", project_id="web")
    assert (changed["budget"], changed["limits"]) == (BUDGET, LIMITS)
    later = begin(tmp_path, store=open_store(tmp_path))
    assert ask(later, "projects.list", tenant_id="acme")["projects"] == [
        {"project_id": "default", "budget": {}, "limits": {}},
        {"project_id": "web", "budget": BUDGET, "limits": LIMITS},
    ]
    terms = later.tenancy.allowances.terms("acme", "project", "web")
    assert terms.bounds == (
        Bound("project", "acme.web", Window.DAY, "tokens", 1_000),
        Bound("project", "acme.web", Window.TOTAL, "micro_usd", 5_000_000),
        Bound("project", "acme.web", Window.NOW, "calls", 2),
    )
    assert terms.rates == (Rate("project.acme.web", 60, None),)
    ask(later, "projects.change", {"budget": {}, "limits": {}}, tenant_id="acme", project_id="web")
    assert later.tenancy.allowances.terms("acme", "project", "web") == NO_TERMS
    later.close()
    said = [f.detail for f in facts(tmp_path) if f.action == AuditAction.PROJECT_CHANGE]
    assert said == [{"limits": LIMITS}] * 2 + [{"budget": {}, "limits": {}}] * 2


def test_a_keys_bounds_are_its_tenants_administrators_to_set(registrar: Registrar) -> None:
    """With the key or later; they are shown with it, and outlive a new secret."""
    made = ask(registrar, "keys.make", {"name": "k", "role": "caller", "budget": BUDGET}, ACME)
    assert (made["budget"], made["limits"]) == (BUDGET, {})
    changed = ask(registrar, "keys.change", {"limits": LIMITS}, ACME, key_id=made["key_id"])
    assert (changed["budget"], changed["limits"]) == (BUDGET, LIMITS)
    assert "key" not in changed
    rotated = ask(registrar, "keys.rotate", {"overlap_s": 0}, ACME, key_id=made["key_id"])
    assert rotated["budget"] == BUDGET
    assert ask(registrar, "keys.list", who=ACME)["keys"][0]["limits"] == LIMITS
    other = replace(ACME, tenant=TenantId("default"))
    with pytest.raises(NotFoundError):
        ask(registrar, "keys.change", {"budget": {}}, other, key_id=made["key_id"])


def test_whose_key_is_bounded_gives_itself_no_more(registrar: Registrar) -> None:
    """Control: KeyAdministration._unbounded. Neither another budget for the key, nor another key."""
    made = ask(registrar, "keys.make", {"name": "k", "role": "admin", "budget": BUDGET}, ACME)
    who = replace(ACME, subject=f"key:{made['key_id']}")
    for operation, body, named in (
        ("keys.change", {"budget": {}}, {"key_id": made["key_id"]}),
        ("keys.make", {"name": "free", "role": "caller"}, {}),
    ):
        with pytest.raises(AdmissionDeniedError, match="budget or limits of its own"):
            ask(registrar, operation, body, who, **named)
    ask(registrar, "keys.change", {"budget": {}}, ACME, key_id=made["key_id"])
    assert ask(registrar, "keys.make", {"name": "free", "role": "caller"}, who)["budget"] == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"budget": {"week": {"tokens": 1}}}, "budget.week"),
        ({"budget": {"day": {"tokens": -1}}}, "budget.day.tokens"),
        ({"limits": {"concurrency": 0}}, "limits.concurrency"),
        ({"limits": {"requests_per_minute": 1.5}}, "limits.requests_per_minute"),
        ({"limit": {}}, "limit"),
    ],
    ids=str,
)
def test_what_is_no_bound_is_refused_by_name(registrar: Registrar, body: dict[str, Any], field: str) -> None:
    """Nothing is changed, and the error names the field."""
    with pytest.raises(InvalidRequestError) as refused:
        ask(registrar, "projects.change", body, tenant_id="acme", project_id="default")
    assert field in {e.field for e in refused.value.errors}
    with pytest.raises(NotFoundError):
        ask(registrar, "projects.change", {"budget": {}}, tenant_id="acme", project_id="none")


def test_the_stored_form_is_pinned() -> None:
    """It is written as it always was; a later release's is not read as something else, which might bound nothing."""
    stored = Allowance.from_bytes("key k", GOLDEN)
    assert (stored.to_public(), stored.to_bytes()) == ({"budget": BUDGET, "limits": LIMITS}, GOLDEN)
    for wrong in (GOLDEN.replace(b":1,", b":2,", 1), b"{}", b"[]", b"", GOLDEN.replace(b"tokens", b"cents")):
        with pytest.raises(IntegrityError, match="key k"):
            Allowance.from_bytes("key k", wrong)
