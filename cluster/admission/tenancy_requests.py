"""The bodies that administer tenants, projects and keys, checked field by field; one error names every field that is wrong."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cluster.admission.allowances import AllowanceBudget
from cluster.admission.catalog import CallLimits
from cluster.admission.tenants import TenantState
from cluster.agents.registration import parse_body
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.roles import ROLE_SCOPES, Role, Scope

MAX_BYTES: Final = 16 << 10
MAX_LIFE_S: Final = 10 * 365 * 86_400
MAX_OVERLAP_S: Final = 30 * 86_400
Body = TypeVar("Body", bound=BaseModel)

_Plan = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_KeyName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")]
# Names come as text from JSON, where strict enums would take their members alone.
_Role = Annotated[Role, Field(strict=False)]
_Scopes = Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=32)]
_State = Annotated[TenantState, Field(strict=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TenantRequest(_Body):
    """The body of `POST /api/v1/tenants`."""

    tenant_id: TenantId
    plan: _Plan


class TenantChange(_Body):
    """The body of `PATCH /api/v1/tenants/{tenant_id}`: a field left out stays as it is, and one at least is given."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    plan: _Plan = ""
    state: _State = TenantState.ACTIVE

    @model_validator(mode="after")
    def _says_something(self) -> TenantChange:
        if not self.model_fields_set:
            raise ValueError("must have plan or state")
        return self


class AllowanceChange(_Body):
    """The body that changes a project or a key: what is given takes the place of all that it had; `{}` takes the bounds away."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    budget: AllowanceBudget = AllowanceBudget()
    limits: CallLimits = CallLimits()

    @model_validator(mode="after")
    def _says_something(self) -> AllowanceChange:
        if not self.model_fields_set:
            raise ValueError("must have budget or limits")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What was said, as JSON values."""
        return self.model_dump(exclude_unset=True, exclude_none=True)


class ProjectRequest(_Body):
    """The body of `POST /api/v1/tenants/{tenant_id}/projects`."""

    project_id: ProjectId
    budget: AllowanceBudget = AllowanceBudget()
    limits: CallLimits = CallLimits()


class KeyRequest(_Body):
    """The body of `POST /api/v1/keys`: a role, or scopes one by one."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["role"]}, {"required": ["scopes"]}]})

    name: _KeyName
    role: _Role = Role.CALLER
    scopes: _Scopes = Field(default_factory=list)
    # The caller's own, unless an operator names another.
    tenant_id: TenantId = Field(default_factory=lambda: TenantId("default"))
    # The caller's own, or `default` for a key of another tenant.
    project_id: ProjectId = Field(default_factory=lambda: ProjectId("default"))
    budget: AllowanceBudget = AllowanceBudget()
    limits: CallLimits = CallLimits()
    expires_in_s: int = Field(0, ge=1, le=MAX_LIFE_S, description="The key's life in seconds; left out, it has no end.")

    @model_validator(mode="after")
    def _role_or_scopes(self) -> KeyRequest:
        if len(self.model_fields_set & {"role", "scopes"}) != 1:
            raise ValueError("must have either role or scopes")
        return self

    @property
    def rights(self) -> frozenset[Scope]:
        """The scopes of the key."""
        return frozenset(self.scopes) if self.scopes else ROLE_SCOPES[self.role]


class KeyRotation(_Body):
    """The body of `POST /api/v1/keys/{key_id}/rotate`."""

    overlap_s: int = Field(ge=0, le=MAX_OVERLAP_S, description="For how many seconds the secret of now is taken beside the new.")


def parse(kind: type[Body], body: bytes) -> Body:
    """Return the body as `kind`; raises InvalidRequestError that names every wrong field."""
    return parse_body(kind, body, MAX_BYTES, what="The request has fields that can't be taken; nothing was changed.")
