"""The decision: a pure function of the request and the bundle. Whatever is not a clean yes is a no, with a reason.

The input that the policy sees holds ids, names and numbers only: no instructions, no label values, no personal data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError
from cluster.admission.standing import StandingEngine
from cluster.agents.lifecycle import AgentState
from cluster.agents.record import AgentRecord
from cluster.agents.spec import AgentSpec
from cluster.errors import FieldError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal
from cluster.telemetry.tracing import span

# The node label that says in which region a node is, and the region of an agent that asks for none.
REGION_LABEL: Final = "region"
UNSPECIFIED_REGION: Final = "unspecified"
# A bundle that lost one of these allows nothing: a check that is not made has not passed.
_TERMS: Final = frozenset(
    {
        "tenant_active",
        "agent_type_allowed",
        "capability_allowed",
        "tools_follow",
        "model_allowed",
        "resources_within_plan",
        "network_access_allowed",
        "data_access_level_allowed",
        "tools_within_data_access_level",
        "region_allowed",
        "compliance_supported",
        "compliance_providers",
        "compliance_egress",
        "compliance_regions",
        "compliance_data_access",
        "iterations_within_plan",
        "replicas_within_plan",
    }
)


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """A question that the policy answers: the rule that does, and the checks that must be among its answer."""

    rule: str
    checks: frozenset[str]


ADMISSION: Final = Entrypoint("data.sovereign.admission.decision", _TERMS | {"registration_allowed", "agent_named"})
ACTIVATION: Final = Entrypoint("data.sovereign.activation.decision", _TERMS | {"state_passive", "tools_still_granted"})
INVOCATION: Final = Entrypoint(
    "data.sovereign.invocation.decision", frozenset({"action_known", "scope_held", "same_tenant", "tenant_active"})
)


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """One question to the policy: the entry point and its input, as the canonical JSON that is digested and evaluated."""

    entrypoint: Entrypoint
    input_json: bytes


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that did not pass: its name, and a sentence that says what to change."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy said, and to what; enough to ask it again years later and compare."""

    decision_id: str
    allow: bool
    failed: tuple[FailedCheck, ...]
    # What must be done by someone else before an allowed request takes effect.
    obligations: tuple[str, ...]
    # The tools granted; empty unless it allows.
    tools: tuple[str, ...]
    revision: str
    digest: str
    # SHA-256 (hex) of the input as it was evaluated.
    input_digest: str

    def field_errors(self) -> tuple[FieldError, ...]:
        """Return every failed check, under its name."""
        return tuple(FieldError(f.name, f.message) for f in self.failed)

    def to_detail(self) -> dict[str, Any]:
        """Return what an audit fact says of this decision."""
        return {
            "failed": {f.name: f.message for f in self.failed},
            "obligations": list(self.obligations),
            "tools": list(self.tools),
            "revision": self.revision,
            "digest": self.digest,
            "input_digest": self.input_digest,
        }


def decide(engine: PolicyEngine, request: AdmissionRequest) -> Decision:
    """Return the decision. An engine that fails, lacks a check, or says yes beside a failed one, has said no."""
    if isinstance(engine, StandingEngine):
        request = AdmissionRequest(request.entrypoint, engine.complete(request.input_json))
    try:
        with span("decide", attributes={"sovereign.policy.rule": request.entrypoint.rule}):
            answer = engine.evaluate(request.entrypoint.rule, request.input_json.decode())
        allow, failed, obligations, tools = _read(answer, request.entrypoint.checks)
    except PolicyEngineError as e:
        allow, obligations, tools = False, (), ()
        failed = (FailedCheck(e.code, f"The policy gave no answer, so nothing is allowed. {e.detail}"),)
    return Decision(
        decision_id=uuid7(),
        allow=allow,
        failed=failed,
        obligations=obligations,
        tools=tools,
        revision=engine.revision,
        digest=engine.digest,
        input_digest=hashlib.sha256(request.input_json).hexdigest(),
    )


def admission_request(principal: Principal, spec: AgentSpec) -> AdmissionRequest:
    """Return the question whether `principal` may register `spec`."""
    who = {
        "tenant": principal.tenant,
        "project": principal.project,
        "subject": principal.subject,
        "scopes": sorted(principal.scopes),
    }
    return _request(ADMISSION, {"principal": who, "agent": _terms_of(spec)})


def require_sound(engine: PolicyEngine, entrypoints: Iterable[Entrypoint]) -> None:
    """Raise PolicyEngineError unless the engine answers each question, makes every check of it, and refuses what says nothing."""
    for entrypoint in entrypoints:
        allow, *_ = _read(engine.evaluate(entrypoint.rule, "{}"), entrypoint.checks)
        if allow:
            raise PolicyEngineError(f"{entrypoint.rule} allows what names nobody and nothing.")


def activation_request(record: AgentRecord, state: AgentState | None = None) -> AdmissionRequest:
    """Return the question whether the agent of `record` may wake; `state` in place of its own asks it of one that does."""
    return _request(
        ACTIVATION,
        {
            "principal": {"tenant": record.tenant},
            "agent": _terms_of(record.spec),
            "tools": list(record.tools),
            # Of the replica that is to start: one that has no process is passive, whatever the others do.
            "state": (state or record.state_of_next).value,
        },
    )


def invocation_request(principal: Principal, action: str, tenant: str) -> AdmissionRequest:
    """Return the question whether `principal` may do `action` ("invoke", "read", …) to agents of `tenant`."""
    who = {"tenant": principal.tenant, "scopes": sorted(principal.scopes)}
    return _request(INVOCATION, {"principal": who, "action": action, "tenant": tenant})


def _terms_of(spec: AgentSpec) -> dict[str, Any]:
    return {
        "agent_id": spec.agent_id,
        "agent_type": spec.agent_type,
        "capabilities": spec.capabilities,
        "allowed_tools": spec.allowed_tools,
        "model": spec.model,
        "cpu_milli": spec.resources.cpu_milli,
        "memory_bytes": spec.resources.memory_bytes,
        "network_access": spec.network_access,
        "data_access_level": spec.data_access_level,
        "compliance": spec.compliance,
        "region": dict(spec.node_labels).get(REGION_LABEL, UNSPECIFIED_REGION),
        "max_iterations": spec.max_iterations,
        "replicas": spec.max_replicas,
    }


def _request(entrypoint: Entrypoint, document: dict[str, Any]) -> AdmissionRequest:
    return AdmissionRequest(entrypoint, orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


def _read(
    answer: dict[str, Any], required: frozenset[str]
) -> tuple[bool, tuple[FailedCheck, ...], tuple[str, ...], tuple[str, ...]]:
    """Return allow, failed checks, obligations and tools; raises PolicyEngineError for an answer of any other form."""
    allow, checks, messages = answer.get("allow"), answer.get("checks"), answer.get("failures")
    if not isinstance(allow, bool) or not isinstance(checks, dict) or not isinstance(messages, dict):
        raise PolicyEngineError("Its answer has no allow, checks or failures.")
    obligations, tools = _names(answer.get("obligations")), _names(answer.get("tools"))
    if missing := required - checks.keys():
        raise PolicyEngineError(f"Its answer lacks the checks {', '.join(sorted(missing))}.")
    wrong = sorted(name for name, passed in checks.items() if passed is not True)
    failed = tuple(FailedCheck(n, str(messages.get(n) or "This check did not pass.")) for n in wrong)
    if allow == bool(failed):
        raise PolicyEngineError(f"It says {'yes' if allow else 'no'}, and its checks say otherwise.")
    return allow, failed, obligations, tools if allow else ()


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise PolicyEngineError("Its answer has no list of names where one must be.")
    return tuple(value)
