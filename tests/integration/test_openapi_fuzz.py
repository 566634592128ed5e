"""What /openapi.json promises holds for requests that nobody wrote: made from the document, valid and not, and sent."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.servers.cluster import RunningCluster
from tests.sizes import soak

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.config import SchemathesisConfig
    from schemathesis.specs.openapi.checks import ignored_auth

# What is refused may be too large besides.
REFUSALS = {"expected-statuses": ["4xx"]}
CONFIG = SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": REFUSALS}})
LIST = ("GET", "/api/v1/agents")
# A schema can't say which client and which token are known.
FORMS = [("POST", "/oauth/token"), ("POST", "/oauth/revoke")]
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/responses"),
    ("POST", "/mcp"),
    ("POST", "/a2a/{agent_id}"),
    ("GET", "/a2a/{agent_id}/.well-known/agent-card.json"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/{response_id}/cancel"),
    ("POST", "/api/v1/agents"),
    LIST,
    ("GET", "/api/v1/agents/{agent_id}"),
    ("PUT", "/api/v1/agents/{agent_id}"),
    ("DELETE", "/api/v1/agents/{agent_id}"),
    ("POST", "/api/v1/agents/{agent_id}/runs"),
    ("GET", "/api/v1/runs"),
    ("GET", "/api/v1/runs/{run_id}"),
    ("GET", "/api/v1/runs/{run_id}/events"),
    ("POST", "/api/v1/runs/{run_id}/cancel"),
    ("DELETE", "/api/v1/runs/{run_id}"),
    ("GET", "/api/v1/webhooks/secret"),
    ("POST", "/api/v1/gangs"),
    ("GET", "/api/v1/gangs/{gang_id}"),
    ("DELETE", "/api/v1/gangs/{gang_id}"),
    ("GET", "/api/v1/limits"),
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/tenants"),
    ("POST", "/api/v1/tenants"),
    ("GET", "/api/v1/tenants/{tenant_id}"),
    ("PATCH", "/api/v1/tenants/{tenant_id}"),
    ("GET", "/api/v1/tenants/{tenant_id}/projects"),
    ("POST", "/api/v1/tenants/{tenant_id}/projects"),
    ("PATCH", "/api/v1/tenants/{tenant_id}/projects/{project_id}"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/keys/{key_id}"),
    ("PATCH", "/api/v1/keys/{key_id}"),
    ("POST", "/api/v1/keys/{key_id}/rotate"),
    ("DELETE", "/api/v1/keys/{key_id}"),
    ("GET", "/langgraph/ok"),
    ("GET", "/langgraph/info"),
    ("POST", "/langgraph/assistants"),
    ("POST", "/langgraph/assistants/search"),
    ("POST", "/langgraph/assistants/count"),
    ("GET", "/langgraph/assistants/{assistant_id}"),
    ("PATCH", "/langgraph/assistants/{assistant_id}"),
    ("DELETE", "/langgraph/assistants/{assistant_id}"),
    ("GET", "/langgraph/assistants/{assistant_id}/schemas"),
    ("POST", "/langgraph/threads"),
    ("POST", "/langgraph/threads/search"),
    ("POST", "/langgraph/threads/count"),
    ("GET", "/langgraph/threads/{thread_id}"),
    ("PATCH", "/langgraph/threads/{thread_id}"),
    ("DELETE", "/langgraph/threads/{thread_id}"),
    ("GET", "/langgraph/threads/{thread_id}/state"),
    ("GET", "/langgraph/threads/{thread_id}/state/{checkpoint_id}"),
    ("POST", "/langgraph/threads/{thread_id}/history"),
    ("POST", "/langgraph/threads/{thread_id}/runs"),
    ("POST", "/langgraph/threads/{thread_id}/runs/wait"),
    ("POST", "/langgraph/threads/{thread_id}/runs/stream"),
    ("GET", "/langgraph/threads/{thread_id}/runs"),
    ("GET", "/langgraph/threads/{thread_id}/runs/{run_id}"),
    ("DELETE", "/langgraph/threads/{thread_id}/runs/{run_id}"),
    ("POST", "/langgraph/threads/{thread_id}/runs/{run_id}/cancel"),
    ("GET", "/langgraph/threads/{thread_id}/runs/{run_id}/join"),
    ("GET", "/langgraph/threads/{thread_id}/runs/{run_id}/stream"),
    ("POST", "/langgraph/runs"),
    ("POST", "/langgraph/runs/wait"),
    ("POST", "/langgraph/runs/stream"),
    ("POST", "/langgraph/runs/batch"),
    ("POST", "/langgraph/runs/cancel"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/.well-known/oauth-authorization-server"),
]


@pytest.fixture(scope="module")
def document(cluster: RunningCluster) -> Any:
    found = cluster.http.get("/openapi.json").json()
    # A route that nobody sends made-up requests to would be one that nobody looked at.
    assert {(method.upper(), path) for path, of in found["paths"].items() for method in of} == {*ROUTES, *FORMS}
    return schemathesis.openapi.from_dict(found, config=CONFIG)


# What bounds another number, is a schema itself, or goes with something else in the body.
TIED = {"min_replicas", "replicas", "resource_limits", "response_format", "tool_choice", "conversation", "store", "background"}


def as_a_person_would(value: Any) -> Any:
    """Return a body without what a schema can't forbid: 47.0 for an integer, two things that don't go together, `9999` CPUs."""
    if isinstance(value, dict):
        if value.get("role") == "tool" or value.get("type") == "function_call_output":  # the result of a call that nobody made
            return {"role": "user", "content": "x"}
        kept = {k: v for k, v in value.items() if k not in TIED and not (k == "text" and isinstance(v, dict))}
        return {k: as_a_person_would(v[:1] if k == "tools" and isinstance(v, list) else v) for k, v in kept.items()}
    if isinstance(value, list):
        return [as_a_person_would(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # Where anything may stand, so may a number that has no one meaning.
    return 1 if isinstance(value, int) and abs(value) > 10**17 else value


# Those of which a request can be wrong: by a parameter or in a body.
MAY_BE_WRONG = [(method, path) for method, path in ROUTES if method == "POST" or "{" in path or (method, path) == LIST] + FORMS
CASES = [(*route, GenerationMode.POSITIVE) for route in ROUTES] + [(*route, GenerationMode.NEGATIVE) for route in MAY_BE_WRONG]


@pytest.mark.parametrize(("method", "path", "mode"), CASES, ids=lambda x: getattr(x, "value", x))
def test_made_up_requests_find_nothing(
    cluster: RunningCluster, document: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """No 5xx, no status or shape that the document does not have; what it allows is taken, what it forbids is refused."""
    seen: Counter[int] = Counter()

    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=soak(3, 300),
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        case.body = as_a_person_would(case.body) if mode is GenerationMode.POSITIVE else case.body
        response = case.call(base_url=cluster.state.http_url, headers=cluster.headers)
        seen[response.status_code] += 1
        # A parameter without any value is not sent, so that what is wrong with it never was.
        if set(case.query or {}) - parse_qs(urlsplit(response.request.url).query, keep_blank_values=True).keys():
            return
        # Our own key goes with each request, so that no made-up one is ever looked at.
        case.validate_response(response, excluded_checks=[ignored_auth])

    send()
    assert seen
