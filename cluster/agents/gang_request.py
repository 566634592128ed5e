"""The body that asks for a gang: several registrations that are admitted all or none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cluster.agents.gang import MAX_GANG, Strategy
from cluster.agents.registration import MAX_REGISTRATION_BYTES, RegistrationRequest, parse_body
from cluster.identity.ids import AgentId

MAX_GANG_BYTES: Final = 4 * MAX_REGISTRATION_BYTES


def _strategy(value: Any) -> Any:
    if not isinstance(value, str) or value not in set(Strategy):
        raise ValueError(f"must be one of {', '.join(Strategy)}")
    return Strategy(value)


class GangRequest(BaseModel):
    """The body of `POST /api/v1/gangs`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    gang_id: AgentId
    agents: list[RegistrationRequest] = Field(min_length=2, max_length=MAX_GANG)
    strategy: Annotated[
        Strategy, BeforeValidator(_strategy), WithJsonSchema({"enum": [s.value for s in Strategy], "type": "string"})
    ] = Field(Strategy.PACK, description="How the members are spread over nodes.")

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of what was asked for."""
        asked = {"gang_id": self.gang_id, "strategy": self.strategy.value, "agents": [a.fingerprint() for a in self.agents]}
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()


def parse_gang(body: bytes | Mapping[str, Any]) -> GangRequest:
    """Return the request of a JSON body or of its parsed form; raises as `parse_registration` does."""
    return parse_body(GangRequest, body, MAX_GANG_BYTES)
