"""What the registry holds of one agent: its spec, what it was granted and by which decision, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from cluster.agents.lifecycle import AgentEvent, AgentState, step
from cluster.agents.quantity import format_cpu, format_memory
from cluster.agents.spec import AgentSpec
from cluster.clock import utc
from cluster.errors import IntegrityError
from cluster.identity.ids import ProjectId, TenantId

# Only the last steps: a record must not grow with every wake.
_HISTORY: Final = 12


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One row of the registry. Times are microseconds since 1970 UTC."""

    tenant: TenantId
    project: ProjectId
    spec: AgentSpec
    # The tools that it may call; they follow from its capabilities.
    tools: tuple[str, ...]
    # The decision that this row stands on, and the policy that made it.
    decision_id: str
    policy_revision: str
    policy_digest: str
    registered_by: str
    created_us: int
    state: AgentState = AgentState.PASSIVE
    # Counts its processes, also those of a removed agent of the same name: no two ever share a generation.
    generation: int = 0
    # Where the process of this generation answers; empty unless it is live.
    address: str = ""
    # SHA-256 of the Idempotency-Key of its registration; empty without one.
    idempotency: str = ""
    # The last steps of its life, oldest first.
    history: tuple[str, ...] = ("register",)

    @property
    def version(self) -> str:
        """What was registered, in short: the first 12 characters of the spec's digest."""
        return self.spec.digest[:12]

    def after(self, event: AgentEvent, *, generation: int | None = None, address: str = "") -> AgentRecord:
        """Return the record after `event`; raises IllegalTransitionError with its history."""
        state = step(self.state, event, agent=f"Agent {self.spec.agent_id}", history=self.history)
        return replace(
            self,
            state=state,
            generation=self.generation if generation is None else generation,
            address=address,
            history=(*self.history, event.value)[-_HISTORY:],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads."""
        return {
            "tenant": str(self.tenant),
            "project": str(self.project),
            "spec": self.spec.to_json(),
            "tools": list(self.tools),
            "decision_id": self.decision_id,
            "policy_revision": self.policy_revision,
            "policy_digest": self.policy_digest,
            "registered_by": self.registered_by,
            "created_us": self.created_us,
            "state": self.state.value,
            "generation": self.generation,
            "address": self.address,
            "idempotency": self.idempotency,
            "history": list(self.history),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AgentRecord:
        """Return the record that `to_json` wrote; raises IntegrityError when it is not one."""
        try:
            return cls(
                tenant=TenantId(value["tenant"]),
                project=ProjectId(value["project"]),
                spec=AgentSpec.from_json(value["spec"]),
                tools=tuple(value["tools"]),
                decision_id=value["decision_id"],
                policy_revision=value["policy_revision"],
                policy_digest=value["policy_digest"],
                registered_by=value["registered_by"],
                created_us=value["created_us"],
                state=AgentState(value["state"]),
                generation=value["generation"],
                address=value["address"],
                idempotency=value["idempotency"],
                history=tuple(value["history"]),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(f"A stored agent record can't be read: {e!r}.") from None

    def to_bytes(self) -> bytes:
        """Return the value of this record's node."""
        return orjson.dumps(self.to_json())

    @classmethod
    def from_bytes(cls, value: bytes) -> AgentRecord:
        """Return the record that `to_bytes` wrote; raises IntegrityError."""
        try:
            stored = orjson.loads(value)
        except orjson.JSONDecodeError as e:
            raise IntegrityError(f"A stored agent record is not JSON: {e}.") from None
        return cls.from_json(stored)

    def to_public(self) -> dict[str, Any]:
        """Return what its owner may see, with quantities and times as people write them."""
        spec = self.spec
        return {
            "agent_id": str(spec.agent_id),
            "project": str(self.project),
            "state": self.state.value,
            "version": self.version,
            "generation": self.generation,
            "agent_type": spec.agent_type,
            "capabilities": list(spec.capabilities),
            "tools": list(self.tools),
            "model": spec.model,
            "instructions": spec.instructions,
            "resources": {
                "cpu": format_cpu(spec.resources.cpu_milli),
                "memory": format_memory(spec.resources.memory_bytes),
            },
            "replicas": spec.replicas,
            "network_access": list(spec.network_access),
            "data_access_level": spec.data_access_level,
            "compliance": list(spec.compliance),
            "max_iterations": spec.max_iterations,
            "labels": dict(spec.labels),
            "node_labels": dict(spec.node_labels),
            "created_at": utc(self.created_us).isoformat(),
            "registered_by": self.registered_by,
            "decision_id": self.decision_id,
            "policy": {"revision": self.policy_revision, "digest": self.policy_digest},
        }
