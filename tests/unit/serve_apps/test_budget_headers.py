"""What a call may spend is never the client's to say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from starlette.requests import Request

from actors.wire import CallOrder
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from serve_apps.chat import ChatRequest
from serve_apps.exchange import Exchange

WHO = Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset())
NAMES = ("budget", "budget-tokens", "budget-micro-usd", "reservation-id", "sovereign-budget", "parent-invocation-id")


def test_threat_23_a_budget_that_a_client_names_in_a_header_is_ignored() -> None:
    """Neither a budget nor a reservation that a client names gets into the order; those come from the process's leases."""
    headers = [(f"{prefix}{name}".encode(), b"999999") for name in NAMES for prefix in ("", "x-", "x-sovereign-")]
    exchange = Exchange.of(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}))
    order = exchange.invocation(WHO, "a", [{"role": "user", "content": "x"}], longest_s=5).order()
    assert (order.reservation_id, order.budget_tokens, order.budget_micro_usd, order.parent_invocation_id) == ("", 0, 0, "")
    assert CallOrder.from_bytes(order.to_bytes()) == order


@pytest.mark.parametrize("name", ["budget_tokens", "budget", "reservation_id"])
def test_threat_23_a_budget_in_a_body_is_refused(name: str) -> None:
    """The body is strict: what is no field of it is an error, and not passed on."""
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "a", "messages": [{"role": "user", "content": "x"}], name: 999_999})
