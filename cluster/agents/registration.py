"""The body that asks for an agent, checked field by field; one error names every field that is wrong.

Optional fields have defaults of their own type and no field takes null, so leaving a field out is the only way to leave
it open. What was left open is completed from the tenant's default policy (`RegistrationRequest.to_spec`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from cluster.admission.strict_json import parse_strict_json
from cluster.agents.budget import MAX_BUDGET, Budget
from cluster.agents.placement import MAX_NODE_LABELS, NAME_PATTERN, PLATFORM_LABELS, VALUE_PATTERN
from cluster.agents.quantity import QUANTITY_PATTERN, parse_cpu, parse_memory
from cluster.agents.spec import (
    MAX_ITERATIONS,
    MAX_REPLICAS,
    MAX_TARGET_QUEUE,
    TARGET_QUEUE,
    AgentSpec,
    Resources,
    SpecDefaults,
)
from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import AgentId
from cluster.telemetry.redaction import holds_secret

_B = TypeVar("_B", bound=BaseModel)
MAX_REGISTRATION_BYTES: Final = 64 << 10
MAX_INSTRUCTIONS_CHARS: Final = 16_384
_MAX_NAMES: Final = 64
_WRONG: Final = "The registration has fields that can't be taken; nothing was registered."


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold the character NUL")
    return text


def _without_secret(text: str) -> str:
    if holds_secret(text):
        raise ValueError("must not hold a key or a token: what is registered is kept and shown")
    return text


def _not_the_platforms(name: str) -> str:
    if name in PLATFORM_LABELS:
        raise ValueError("is the platform's own label; ask for a label that the operator gave")
    return name


# Strictly text or a whole number; the words about units come from the parser of quantities.
_Quantity = {"type": ["string", "integer"], "pattern": QUANTITY_PATTERN, "minimum": 1}
_Cpu = Annotated[int, BeforeValidator(parse_cpu), WithJsonSchema(_Quantity | {"examples": ["500m", "2"]})]
_Memory = Annotated[int, BeforeValidator(parse_memory), WithJsonSchema(_Quantity | {"examples": ["512Mi", "2Gi"]})]
# The names that the policy's catalogue is written in. ASCII only, so that look-alike letters can't pass for a known name.
Name = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_ComplianceName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z][A-Z0-9_-]{0,31}$")]
_ModelName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9_-]{0,31}:[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")
]
_LabelName = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]
_LabelValue = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_.-]{0,63}$"), AfterValidator(_without_secret)]
_NodeLabelName = Annotated[str, StringConstraints(strict=True, pattern=f"^{NAME_PATTERN}$"), AfterValidator(_not_the_platforms)]
_NodeLabelValue = Annotated[str, StringConstraints(strict=True, pattern=f"^{VALUE_PATTERN}$")]
_Instructions = Annotated[
    str,
    StringConstraints(strict=True, max_length=MAX_INSTRUCTIONS_CHARS),
    AfterValidator(_without_nul),
    AfterValidator(_without_secret),
    WithJsonSchema({"type": "string", "maxLength": MAX_INSTRUCTIONS_CHARS, "pattern": r"^[^\u0000]*$"}),
]

# Pydantic says which keys there may be by a pattern, but not that there are no others.
_CLOSED: Final[dict[str, Any]] = {"additionalProperties": False}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ResourceLimitsBody(_Body):
    """What one process of the agent may use; a limit left out is the tenant's default."""

    cpu: _Cpu = 0
    memory: _Memory = 0


class BudgetBody(_Body):
    """What the agent may spend; a unit left out is the tenant's default."""

    tokens: int = Field(0, ge=1, le=MAX_BUDGET)
    micro_usd: int = Field(0, ge=1, le=MAX_BUDGET, description="Millionths of a US dollar.")


class SecurityPolicyBody(_Body):
    """What the agent may do; a field left out is the tenant's default."""

    agent_type: Name = ""
    allowed_tools: list[Name] = Field(default_factory=list, max_length=_MAX_NAMES)
    resource_limits: ResourceLimitsBody = Field(default_factory=ResourceLimitsBody)
    network_access: list[Name] = Field(default_factory=list, max_length=_MAX_NAMES)
    data_access_level: Name = ""
    max_iterations: int = Field(0, ge=1, le=MAX_ITERATIONS)


class RegistrationRequest(_Body):
    """The body of `POST /api/v1/agents` and of `register_agent`."""

    agent_id: AgentId
    capabilities: list[Name] = Field(min_length=1, max_length=_MAX_NAMES)
    security_policy: SecurityPolicyBody = Field(default_factory=SecurityPolicyBody)
    compliance_requirements: list[_ComplianceName] = Field(default_factory=list, max_length=_MAX_NAMES)
    # LangChain's `provider:model`.
    model: _ModelName = ""
    # The system prompt.
    instructions: _Instructions = ""
    labels: dict[_LabelName, _LabelValue] = Field(default_factory=dict, max_length=32, json_schema_extra=_CLOSED)
    node_labels: dict[_NodeLabelName, _NodeLabelValue] = Field(
        default_factory=dict,
        max_length=MAX_NODE_LABELS,
        description="Labels that a node must have for the agent to be there.",
        json_schema_extra=_CLOSED,
    )
    budget: BudgetBody = Field(default_factory=BudgetBody)
    replicas: int = Field(1, ge=1, le=MAX_REPLICAS, description="`max_replicas` where that is left out.")
    max_replicas: int = Field(
        0,
        ge=1,
        le=MAX_REPLICAS,
        description="Processes that may answer for the agent at once. All of them count in the quota. Left out: `replicas`.",
    )
    min_replicas: int = Field(
        0, ge=0, le=MAX_REPLICAS, description="Processes that answer also while nobody calls; 0 lets the agent give up its last."
    )
    target_queue: int = Field(
        TARGET_QUEUE,
        ge=1,
        le=MAX_TARGET_QUEUE,
        description="Calls under way for each process above which one more is started, up to `max_replicas`.",
    )

    @field_validator("max_replicas")
    @classmethod
    def _not_fewer_than_replicas(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("replicas", 1):
            raise ValueError("must not be less than replicas; leave one of the two out")
        return value

    @field_validator("min_replicas")
    @classmethod
    def _not_more_than_the_most(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_replicas", MAX_REPLICAS) or info.data.get("replicas", MAX_REPLICAS)
        if value > most:
            raise ValueError(f"must not be more than max_replicas, which is {most}")
        return value

    def to_spec(self, defaults: SpecDefaults) -> AgentSpec:
        """Return the spec, with every field that was left open taken from the tenant's `defaults`."""
        policy, limits = self.security_policy, self.security_policy.resource_limits
        given, compliance = policy.model_fields_set, self.compliance_requirements
        return AgentSpec(
            agent_id=self.agent_id,
            agent_type=policy.agent_type or defaults.agent_type,
            capabilities=_sorted_unique(self.capabilities),
            model=self.model or defaults.model,
            instructions=self.instructions,
            # An empty list is a wish for no tools; only leaving it out asks for all that follow from the capabilities.
            allowed_tools=_sorted_unique(policy.allowed_tools) if "allowed_tools" in given else None,
            resources=Resources(limits.cpu or defaults.resources.cpu_milli, limits.memory or defaults.resources.memory_bytes),
            network_access=_sorted_unique(policy.network_access) if "network_access" in given else defaults.network_access,
            data_access_level=policy.data_access_level or defaults.data_access_level,
            compliance=_sorted_unique(compliance) if "compliance_requirements" in self.model_fields_set else defaults.compliance,
            max_iterations=policy.max_iterations or defaults.max_iterations,
            max_replicas=self.max_replicas or self.replicas,
            min_replicas=self.min_replicas,
            target_queue=self.target_queue,
            labels=tuple(sorted(self.labels.items())),
            node_labels=tuple(sorted(self.node_labels.items())),
            budget=Budget(self.budget.tokens, self.budget.micro_usd).or_else(defaults.budget),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of what was asked for: equal for equal bodies, whatever the order of their keys."""
        return hashlib.sha256(
            orjson.dumps(self.model_dump(mode="json", exclude_unset=True), option=orjson.OPT_SORT_KEYS)
        ).hexdigest()


def parse_body(kind: type[_B], body: bytes | Mapping[str, Any], max_bytes: int, *, what: str = _WRONG) -> _B:
    """Return the `kind` of a JSON body or of its parsed form; raises as `parse_registration` does, with `what` first."""
    parsed = parse_strict_json(body, max_bytes=max_bytes) if isinstance(body, bytes) else body
    try:
        return kind.model_validate(parsed)
    except ValidationError as e:
        errors = [FieldError(".".join(map(str, x["loc"])) or "body", _sentence(dict(x))) for x in e.errors(include_url=False)]
    raise InvalidRequestError(what, errors=errors)


def parse_registration(body: bytes | Mapping[str, Any]) -> RegistrationRequest:
    """Return the request of a JSON body or of its parsed form.

    Raises InvalidRequestError that names every wrong field by its dotted path ("security_policy.resource_limits.memory"),
    PayloadTooLargeError above 64 KiB.
    """
    return parse_body(RegistrationRequest, body, MAX_REGISTRATION_BYTES)


_WORDS: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field that is known here; check its spelling",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_unicode": "must be valid Unicode text",
}
_BOUNDS: Final = {
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} items",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def _sentence(error: dict[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}; got {error['input'][:80]!a}"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    return _WORDS.get(kind) or str(error["msg"])


def _sorted_unique(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
