"""What governance tells a fresh process that becomes an agent, before the key under which it may be called."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.agents.record import AgentRecord
from cluster.limits.price_card import NO_PRICE, Price
from cluster.settings import Settings


@dataclass(frozen=True, slots=True)
class StartOrder:
    """Who the process is. It holds no secret: Ray keeps it as long as it knows the actor."""

    settings: Settings
    tenant: str
    record: AgentRecord
    generation: int
    # The hosts that its tools may fetch from, as the policy in force names them.
    egress_hosts: tuple[str, ...] = ()
    # What its model costs, by the policy in force when it started.
    price: Price = NO_PRICE

    @property
    def key(self) -> tuple[str, str]:
        """Tenant and agent id."""
        return self.tenant, str(self.record.spec.agent_id)

    @property
    def writer_id(self) -> str:
        """The name of the journal that this agent writes; its epoch is the generation."""
        return f"agent.{self.tenant}.{self.record.spec.agent_id}"

    def to_bytes(self) -> bytes:
        """Return the order as JSON."""
        return json.dumps(
            {
                "settings": self.settings.to_json(),
                "tenant": self.tenant,
                "record": self.record.to_json(),
                "generation": self.generation,
                "egress_hosts": self.egress_hosts,
                "price": self.price.to_json(),
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> StartOrder:
        """Return the order that `to_bytes` wrote, with the settings as they are on this node."""
        d = json.loads(data)
        return cls(
            settings=Settings.of_this_node(d["settings"]),
            tenant=d["tenant"],
            record=AgentRecord.from_json(d["record"]),
            generation=d["generation"],
            egress_hosts=tuple(d["egress_hosts"]),
            price=Price(**d.get("price", {})),
        )
