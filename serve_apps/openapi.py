"""What /openapi.json says: each route's body, answers, parameters and key, with every schema that they name."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from cluster.admission.tenancy_requests import (
    AllowanceChange,
    KeyRequest,
    KeyRotation,
    ProjectRequest,
    TenantChange,
    TenantRequest,
)
from cluster.agents.gang_request import GangRequest
from cluster.agents.registration import RegistrationRequest
from cluster.identity.ids import GRAMMAR
from serve_apps import langgraph, langgraph_table
from serve_apps.a2a import A2aMessage
from serve_apps.chat import ChatRequest
from serve_apps.mcp import McpMessage
from serve_apps.native_routes import IF_MATCH_PATTERN
from serve_apps.responses import ResponseRequest
from serve_apps.run_requests import RunBody

BODIES: Final[tuple[type[BaseModel], ...]] = (
    ChatRequest,
    ResponseRequest,
    McpMessage,
    A2aMessage,
    RegistrationRequest,
    GangRequest,
    TenantRequest,
    TenantChange,
    ProjectRequest,
    KeyRequest,
    KeyRotation,
    AllowanceChange,
    RunBody,
    *langgraph.BODIES,
)
# Routes that anybody may ask.
OPEN: Final = frozenset({"/health/live", "/health/ready", "/langgraph/ok"})
_REF: Final = "#/components/schemas/{model}"
_TEXT: Final = {"type": "string"}
_NAME: Final = {"type": "string", "pattern": f"^{GRAMMAR}$"}
_OR_NULL: Final = {"type": ["string", "null"]}
_AFTER: Final = {"name": "after", "in": "query", "schema": {"type": "string", "maxLength": 64, "pattern": "^[ -~]*$"}}
_LIMIT: Final = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}}
_OF_TENANT: Final = {
    "name": "tenant_id",
    "in": "query",
    "schema": {"type": "string", "pattern": f"^({GRAMMAR})?$"},
    "description": "Whose key it is, for operators; anyone else has those of their own tenant.",
}
_ALLOWANCE: Final = {"budget": {"type": "object"}, "limits": {"type": "object"}}
_KEY: Final[dict[str, Any]] = {
    **dict.fromkeys(("key_id", "name", "last4", "tenant", "project", "created_at"), _TEXT),
    **dict.fromkeys(("role", "expires_at", "revoked_at", "previous_secret_until"), _OR_NULL),
    "state": {"enum": ["active", "expired", "revoked"]},
    "scopes": {"type": "array", "items": _TEXT},
    **_ALLOWANCE,
}
_TENANT: Final[dict[str, Any]] = {
    **dict.fromkeys(("tenant_id", "plan"), _TEXT),
    **dict.fromkeys(("created_at", "created_by"), _OR_NULL),
    "state": {"enum": ["active", "suspended"]},
    "source": {"enum": ["policy", "administrator"]},
}

_RUN: Final[dict[str, Any]] = {
    **dict.fromkeys(("run_id", "agent_id", "created_at", "updated_at"), _TEXT),
    **dict.fromkeys(("thread_id", "answer", "finish_reason"), _OR_NULL),
    "status": {"enum": ["pending", "running", "success", "error", "cancelled"]},
    "usage": {"type": ["object", "null"]},
    "error": {"type": ["object", "null"]},
    "metadata": {"type": "object"},
}

_SCHEMAS: Final[dict[str, Any]] = {
    "Registered": {
        "type": "object",
        "required": ["status", "agent_id", "security_clearance"],
        "properties": {"status": {"const": "registered"}, "agent_id": _TEXT, "security_clearance": {"const": "validated"}},
    },
    "Run": {"type": "object", "required": [*_RUN], "properties": _RUN},
    "Runs": {
        "type": "object",
        "required": ["runs", "next"],
        "properties": {"runs": {"type": "array", "items": {"$ref": _REF.format(model="Run")}}, "next": _TEXT},
    },
    "Key": {"type": "object", "required": [*_KEY], "properties": _KEY},
    "NewKey": {
        "description": "With the key's text, which is shown this once.",
        "type": "object",
        "required": ["key", *_KEY],
        "properties": {"key": _TEXT} | _KEY,
    },
    "Keys": {
        "type": "object",
        "required": ["keys", "next"],
        "properties": {"keys": {"type": "array", "items": {"$ref": _REF.format(model="Key")}}, "next": _TEXT},
    },
    "Tenant": {
        "type": "object",
        "required": [*_TENANT],
        "properties": _TENANT | {"projects": {"type": "array", "items": _TEXT}},
    },
    "Tenants": {
        "type": "object",
        "required": ["tenants", "next"],
        "properties": {"tenants": {"type": "array", "items": {"$ref": _REF.format(model="Tenant")}}, "next": _TEXT},
    },
    "Project": {
        "type": "object",
        "required": ["project_id", *_ALLOWANCE],
        "properties": {"project_id": _TEXT, "tenant_id": _TEXT, **_ALLOWANCE},
    },
    "Projects": {
        "type": "object",
        "required": ["projects"],
        "properties": {"projects": {"type": "array", "items": {"$ref": _REF.format(model="Project")}}},
    },
    "Problem": {
        "description": "RFC 9457, with `errors` that name each wrong field or failed check.",
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            **dict.fromkeys(("type", "title", "code", "detail", "hint", "request_id"), _TEXT),
            "status": {"type": "integer"},
            "retry_after_s": {"type": "number"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {"field": _TEXT, "message": _TEXT},
                },
            },
        },
    },
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT},
            }
        },
    },
}
# What a route answers with, where its schema says more than that it is an object.
_ANSWERS: Final = {
    "register": "Registered",
    "list_tenants": "Tenants",
    **dict.fromkeys(("make_tenant", "show_tenant", "change_tenant"), "Tenant"),
    **dict.fromkeys(("start_run", "show_run", "cancel_run"), "Run"),
    "list_runs": "Runs",
    "list_projects": "Projects",
    **dict.fromkeys(("make_project", "change_project"), "Project"),
    "list_keys": "Keys",
    **dict.fromkeys(("make_key", "rotate_key"), "NewKey"),
    **dict.fromkeys(("show_key", "change_key", "revoke_key"), "Key"),
}
_DEADLINE: Final = {
    "name": "X-Deadline-S",
    "in": "header",
    "schema": {"type": "string", "pattern": r"^(?!0+(\.0+)?$)[0-9]{1,6}(\.[0-9]{1,3})?$"},
    "description": "Stop the work after so many seconds, such as 2.5.",
}
_ONCE: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255, "pattern": "^[ -~]+$"},
    "description": "The same key with the same body is answered as the first time, and nothing is done twice.",
}
_PARAMETERS: Final[dict[str, list[dict[str, Any]]]] = langgraph_table.PARAMETERS | {
    "register": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "maxLength": 255},
            "description": "The same key with the same body is answered as the first time.",
        }
    ],
    **{name: [_DEADLINE, _ONCE] for name in ("chat_completions", "create_response", "start_run")},
    "list_runs": [
        {"name": "thread_id", "in": "query", "schema": {"type": "string", "pattern": f"^({GRAMMAR})?$"}},
        {"name": "status", "in": "query", "schema": _RUN["status"]},
        _AFTER | {"description": "Begin after this run, which is newer."},
        _LIMIT,
    ],
    "follow_run": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
            "description": "Begin after this event.",
        }
    ],
    "list_tenants": [_AFTER | {"description": "Begin after this tenant."}, _LIMIT],
    "list_keys": [_AFTER | {"description": "Begin after this key id."}, _LIMIT, _OF_TENANT],
    **{name: [_OF_TENANT] for name in ("show_key", "change_key", "rotate_key", "revoke_key")},
    "change": [
        {
            "name": "If-Match",
            "in": "header",
            "schema": {"type": "string", "pattern": f"^({IF_MATCH_PATTERN})$"},
            "description": "The ETag of the agent as it was read; 412 when it has another specification by now.",
        }
    ],
    "list": [
        {
            "name": "after",
            "in": "query",
            "schema": {"type": "string", "pattern": f"^({GRAMMAR})?$"},
            "description": "Begin after this agent id.",
        },
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
    ],
}


class _WithoutDefaults(GenerateJsonSchema):
    """A field that is left out is completed from the tenant's plan, so what stands in our classes is nobody's default."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the field's schema alone."""
        return self.generate_inner(schema["schema"])


def summary_of(docstring: str) -> str:
    """Return what a handler's docstring ("GET /path: what it does.") says after the path."""
    _, _, text = docstring.partition("\n")[0].partition(": ")
    return text[:1].upper() + text[1:]


def operation(name: str, path: str, body: type[BaseModel] | None, statuses: tuple[int, ...]) -> dict[str, Any]:
    """Return what the document says of a route beyond its summary."""
    openai = path.startswith("/v1/")
    problem = {
        "application/json" if openai else "application/problem+json": {"schema": _ref("OpenAIError" if openai else "Problem")}
    }
    schema = _ref(_ANSWERS[name]) if name in _ANSWERS else langgraph_table.ANSWERS.get(name, {"type": "object"})
    done: dict[str, Any] = {"application/json": {"schema": schema}}
    if body in (ChatRequest, ResponseRequest):
        done["text/event-stream"] = {
            "schema": {"type": "string", "description": "With `stream`: the answer as it is made, in OpenAI's events."}
        }
    if name in langgraph_table.STREAMS:
        done = {"text/event-stream": {"schema": {"type": "string", "description": "LangGraph's events, each with an id."}}}
    if name == "follow_run":
        done = {"text/event-stream": {"schema": {"type": "string", "description": "`text` events, then one `end`."}}}
    if body in (McpMessage, A2aMessage):
        done["text/event-stream"] = {"schema": {"type": "string", "description": "What comes until the end, if asked for."}}
        # JSON-RPC has errors of its own, beside those of HTTP.
        problem["application/json"] = {"schema": {"type": "object"}}
    extra: dict[str, Any] = {
        "responses": {
            str(s): {"description": "Done"} | ({} if s == 202 and body is McpMessage else {"content": done}) for s in statuses
        }
        | {"4XX": {"description": "Refused", "content": problem}, "5XX": {"description": "Failed", "content": problem}},
    }
    if path not in OPEN:
        extra["security"] = [{"bearer": []}]
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body.__name__)}}}
    parameters = list(_PARAMETERS.get(name, []))
    path_schemas = {
        **dict.fromkeys(("agent_id", "gang_id", "tenant_id", "project_id", "model"), _NAME),
        **dict.fromkeys(("key_id", "response_id", "run_id", "thread_id", "assistant_id", "checkpoint_id"), _TEXT),
    }
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in path_schemas.items()
        if f"{{{name}}}" in path
    ]
    if parameters:
        extra["parameters"] = parameters
    return extra


def complete(app: FastAPI) -> None:
    """Give the document of `app` the schemas and the security scheme that its operations name."""
    _, bodies = models_json_schema(
        [(body, "validation") for body in BODIES], ref_template=_REF, schema_generator=_WithoutDefaults
    )
    app.openapi_schema = app.openapi() | {
        "components": {
            "schemas": _SCHEMAS | bodies["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; `up` says which file has the first."}
            },
        }
    }


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=model)}
