"""The data that policies decide over: `policies/data/*.yaml`, checked against this schema when it is loaded.

Quantities become whole numbers here, so that rules and quotas compute with the same ones.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from cluster.agents.budget import MAX_BUDGET, Budget
from cluster.agents.quantity import format_cpu, format_memory, parse_cpu, parse_memory
from cluster.agents.spec import MAX_ITERATIONS, MAX_REPLICAS, Resources, SpecDefaults
from cluster.identity.ids import TenantId
from cluster.limits.price_card import Price


def _without_repetition(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("has a name twice")
    return names


_Cpu = Annotated[int, BeforeValidator(parse_cpu, json_schema_input_type=str)]
_Memory = Annotated[int, BeforeValidator(parse_memory, json_schema_input_type=str)]
_Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=500)]
_Names = Annotated[list[_Text], AfterValidator(_without_repetition)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Described(_Entry):
    """A name that policies may use, with what it means."""

    description: _Text


class Capability(Described):
    """What an agent may be for, the tools that follow, and what must be done before an agent with it exists."""

    tools: _Names = []
    obligations: _Names = []


class Egress(Described):
    """A place outside, as host names; "*." at the front stands for any name below."""

    hosts: _Names


class Tool(Described):
    """A tool that is shipped, with the classes of data that it gets at by itself."""

    reads: _Names = []
    writes: _Names = []


class DataAccessLevel(Described):
    """What an agent may do with data, by class."""

    reads: _Names = []
    writes: _Names = []


class Control(_Entry):
    """What an agent under a set of rules may have, and the clause that says so."""

    clause: _Text
    allowed: _Names


class ComplianceSet(Described):
    """A set of rules that an agent can be asked to keep."""

    providers: Control
    egress: Control
    regions: Control
    data_access_levels: Control


class Bounds(_Entry):
    """The least and the most of something, both included."""

    min: int
    max: int
    min_text: str
    max_text: str


class AgentLimits(_Entry):
    """What one agent may declare."""

    cpu_milli: Bounds
    memory_bytes: Bounds

    @model_validator(mode="before")
    @classmethod
    def _from_quantities(cls, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {"cpu", "memory"}:
            raise ValueError("must have exactly the fields cpu and memory")
        bounds = {}
        for name, field, parse, show in (
            ("cpu", "cpu_milli", parse_cpu, format_cpu),
            ("memory", "memory_bytes", parse_memory, format_memory),
        ):
            pair = value[name]
            if not isinstance(pair, dict) or set(pair) != {"min", "max"}:
                raise ValueError(f"{name} must have exactly the fields min and max")
            low, high = parse(pair["min"]), parse(pair["max"])
            if low > high:
                raise ValueError(f"{name}.min is more than {name}.max")
            bounds[field] = {"min": low, "max": high, "min_text": show(low), "max_text": show(high)}
        return bounds

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return what stands in the file, which is turned into the fields above."""
        fields = {"min": {"type": "string"}, "max": {"type": "string"}}
        pair = {"type": "object", "properties": fields, "required": ["min", "max"], "additionalProperties": False}
        both = {"cpu": pair, "memory": pair}
        return {"type": "object", "properties": both, "required": ["cpu", "memory"], "additionalProperties": False}


class Quota(_Entry):
    """What all registered agents of one tenant may declare together."""

    cpu: _Cpu
    memory: _Memory
    agents: int = Field(ge=0, le=10_000_000)

    @property
    def resources(self) -> Resources:
        """CPU and memory of it."""
        return Resources(self.cpu, self.memory)


class BudgetBound(_Entry):
    """What all registered agents of one tenant may reserve, with what was spent; a unit left out is not bounded."""

    tokens: int | None = Field(None, ge=0, le=MAX_BUDGET)
    micro_usd: int | None = Field(None, ge=0, le=MAX_BUDGET)

    def of(self, unit: str) -> int | None:
        """Return the bound of one unit; None without one."""
        return self.tokens if unit == "tokens" else self.micro_usd


class DefaultBudget(_Entry):
    """The budget of an agent that declares none; a unit left out must be declared where the plan bounds it."""

    tokens: int = Field(0, ge=0, le=MAX_BUDGET)
    micro_usd: int = Field(0, ge=0, le=MAX_BUDGET)


class Spending(_Entry):
    """What calls of one tenant may spend in a day and in a month (UTC); a unit left out is not bounded."""

    day: BudgetBound = BudgetBound()
    month: BudgetBound = BudgetBound()


class CallLimits(_Entry):
    """How fast one tenant may call, and how much at once; what is left out is not bounded."""

    requests_per_minute: int | None = Field(None, ge=1, le=MAX_BUDGET)
    tokens_per_minute: int | None = Field(None, ge=1, le=MAX_BUDGET)
    concurrency: int | None = Field(None, ge=1, le=1_000_000)


class PriceEntry(_Entry):
    """Millionths of a US dollar: of a million tokens of each class, of a tool call, of a second of CPU."""

    input_uncached: int = Field(0, ge=0, le=MAX_BUDGET)
    cache_read: int = Field(0, ge=0, le=MAX_BUDGET)
    cache_write: int = Field(0, ge=0, le=MAX_BUDGET)
    output: int = Field(0, ge=0, le=MAX_BUDGET)
    reasoning: int = Field(0, ge=0, le=MAX_BUDGET)
    tool_call: int = Field(0, ge=0, le=MAX_BUDGET)
    cpu_second: int = Field(0, ge=0, le=MAX_BUDGET)

    @property
    def price(self) -> Price:
        """It as what computes with it."""
        return Price(**self.model_dump())


class DefaultResources(_Entry):
    """The resources of an agent that declares none; one left out must be declared."""

    cpu: _Cpu = 0
    memory: _Memory = 0


class DefaultPolicy(_Entry):
    """The security policy of a registration that names none."""

    agent_type: _Text
    model: _Text
    resources: DefaultResources = DefaultResources()
    budget: DefaultBudget = DefaultBudget()
    data_access_level: _Text
    max_iterations: int = Field(10, ge=1, le=MAX_ITERATIONS)
    network_access: _Names = []
    compliance: _Names = []

    def to_spec_defaults(self) -> SpecDefaults:
        """Return it as the values that complete a registration."""
        return SpecDefaults(
            agent_type=self.agent_type,
            model=self.model,
            resources=Resources(self.resources.cpu, self.resources.memory),
            data_access_level=self.data_access_level,
            max_iterations=self.max_iterations,
            network_access=tuple(sorted(self.network_access)),
            compliance=tuple(sorted(self.compliance)),
            budget=Budget(self.budget.tokens, self.budget.micro_usd),
        )


class Plan(_Entry):
    """What a tenant may register."""

    quota: Quota
    budget: BudgetBound = BudgetBound()
    spending: Spending = Spending()
    limits: CallLimits = CallLimits()
    agent_limits: AgentLimits
    max_iterations: int = Field(ge=1, le=MAX_ITERATIONS)
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    capabilities: _Names
    agent_types: _Names
    models: _Names
    egress: _Names
    data_access_levels: _Names
    compliance: _Names
    regions: _Names
    # How often work may be handed on from agent to agent; 0 means not at all.
    max_delegation_depth: int = Field(ge=0, le=100)
    # Whether its jobs may create Ray actors of their own; otherwise those are found and ended.
    raw_actors: bool = False
    defaults: DefaultPolicy


class Tenant(_Entry):
    """Whose agents may exist here."""

    plan: _Text
    active: bool


class Manifest(_Entry):
    """The bundle's own name."""

    revision: _Text


class Catalog(_Entry):
    """All of the data, each file under its name; every name that a file uses is defined in the file it belongs to."""

    manifest: Manifest
    capabilities: dict[str, Capability]
    agent_types: dict[str, Described]
    tools: dict[str, Tool]
    egress: dict[str, Egress]
    data_classes: dict[str, Described]
    data_access_levels: dict[str, DataAccessLevel]
    regions: dict[str, Described]
    compliance: dict[str, ComplianceSet]
    models: dict[str, Described]
    # By pattern of `provider:model`; the longest that fits holds.
    prices: dict[str, PriceEntry]
    plans: dict[str, Plan]
    tenants: dict[TenantId, Tenant]

    @model_validator(mode="after")
    def _names_are_defined(self) -> Catalog:
        wrong = [f"{where} names {name!r}, which is not defined" for where, name, known in self._uses() if name not in known]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _uses(self) -> list[tuple[str, str, Any]]:
        uses: list[tuple[str, str, Any]] = []
        for name, capability in self.capabilities.items():
            uses += [(f"capabilities.{name}.tools", t, self.tools) for t in capability.tools]
        for kind in ("tools", "data_access_levels"):
            for name, entry in getattr(self, kind).items():
                uses += [(f"{kind}.{name}.reads", c, self.data_classes) for c in entry.reads]
                uses += [(f"{kind}.{name}.writes", c, self.data_classes) for c in entry.writes]
        for name, kept in self.compliance.items():
            for field, known in (("providers", self.models), ("egress", self.egress), ("regions", self.regions)):
                uses += [(f"compliance.{name}.{field}", n, known) for n in getattr(kept, field).allowed]
            uses += [
                (f"compliance.{name}.data_access_levels", n, self.data_access_levels) for n in kept.data_access_levels.allowed
            ]
        for provider in self.models:
            uses.append((f"models.{provider}", f"{provider}:*", self.prices))
        for name, tenant in self.tenants.items():
            uses.append((f"tenants.{name}.plan", tenant.plan, self.plans))
        for name, plan in self.plans.items():
            at, defaults = f"plans.{name}", plan.defaults
            for field in ("capabilities", "agent_types", "egress", "data_access_levels", "compliance", "regions"):
                uses += [(f"{at}.{field}", n, getattr(self, field)) for n in getattr(plan, field)]
            uses += [(f"{at}.models", m.partition(":")[0], self.models) for m in plan.models]
            uses.append((f"{at}.defaults.agent_type", defaults.agent_type, plan.agent_types))
            uses.append((f"{at}.defaults.data_access_level", defaults.data_access_level, plan.data_access_levels))
            uses += [(f"{at}.defaults.network_access", n, plan.egress) for n in defaults.network_access]
            uses += [(f"{at}.defaults.compliance", n, plan.compliance) for n in defaults.compliance]
        return uses

    def price_card(self) -> dict[str, Price]:
        """Return the price of each pattern of models."""
        return {pattern: entry.price for pattern, entry in self.prices.items()}

    def plan_of(self, tenant: str) -> Plan | None:
        """Return the plan of `tenant`, or None when there is no such tenant."""
        known = self.tenants.get(TenantId(tenant))
        return self.plans[known.plan] if known else None

    def may_have_raw_actors(self, tenant: str) -> bool:
        """Return whether the jobs of `tenant` may create Ray actors of their own."""
        known = self.tenants.get(TenantId(tenant))
        return known is not None and known.active and self.plans[known.plan].raw_actors


def data_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each data file, by its name without ".yaml"; what loads the files is what they are made from."""
    schemas = {}
    for name, field in Catalog.model_fields.items():
        adapter: TypeAdapter[Any] = TypeAdapter(field.annotation)  # type: ignore[arg-type]  # a field of a model has one
        schema = adapter.json_schema(mode="validation")
        schemas[name] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"policies/data/{name}.yaml",
        } | schema
    return schemas
