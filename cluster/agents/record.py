"""What the registry holds of one agent: its spec, what it was granted and by which decision, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from cluster.agents.holding import Holding, holding_of
from cluster.agents.life import PROCESS_PREFIX, Life, state_of
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
    # Its last one: counts its lives, also those of a removed agent of the same name, so that no two ever share one.
    generation: int = 0
    # The generations of which a process may exist, oldest first.
    lives: tuple[Life, ...] = ()
    # SHA-256 of the Idempotency-Key of its registration; empty without one.
    idempotency: str = ""
    # Processes of this generation and before run an earlier spec; none of the present one starts beside them. 0 without any.
    outdated: int = 0
    # What it holds of the quota until those have ended; None when that is what its spec declares.
    held: Holding | None = None
    # The gang that it was registered with, and is removed with; empty without one.
    gang: str = ""
    # The last steps of its life, oldest first.
    history: tuple[str, ...] = ("register",)

    @property
    def version(self) -> str:
        """What was registered, in short: the first 12 characters of the spec's digest."""
        return self.spec.digest[:12]

    @property
    def state_of_next(self) -> AgentState:
        """What its next generation is: passive while one more may have a process, else what the agent is."""
        more = self.state is not AgentState.REVOKED and len(self.lives) < self.spec.max_replicas and not self.outdated
        return AgentState.PASSIVE if more else self.state

    @property
    def holding(self) -> Holding:
        """What it holds of its tenant's quota."""
        return self.held or holding_of(self.spec)

    def changed(self, spec: AgentSpec, **decided: Any) -> AgentRecord:
        """Return the record with another `spec`, and the fields that follow from the decision on it.

        While processes of the earlier spec may exist it holds what either takes, so that the quota is never passed.
        """
        new = replace(self, spec=spec, history=(*self.history, AgentEvent.CHANGE.value)[-_HISTORY:], **decided)
        if not self.lives:
            return new
        return replace(new, outdated=self.generation, held=self.holding.at_least(holding_of(spec)))

    def life(self, generation: int) -> Life | None:
        """Return a generation of which a process may exist, or None."""
        return next((life for life in self.lives if life.generation == generation), None)

    def woken(self, process: str) -> AgentRecord:
        """Return the record with a next generation, which `process` is to hold.

        Raises IllegalTransitionError when as many may have a process as its spec allows at once.
        """
        step(self.state_of_next, AgentEvent.WAKE, agent=self._name, history=self.history)
        life = Life(self.generation + 1, process, AgentState.STARTING)
        return replace(self._with(AgentEvent.WAKE, (*self.lives, life)), generation=life.generation)

    def after(self, event: AgentEvent, generation: int, *, address: str = "") -> AgentRecord:
        """Return the record after `event` happened to a generation; raises IllegalTransitionError with its history."""
        life = self.life(generation)
        before = self.state if life is None or self.state is AgentState.REVOKED else life.state
        state = step(before, event, agent=self._name, history=self.history)
        if state is AgentState.PASSIVE:
            return self.without(generation, event)
        lives = (replace(x, state=state, address=address) if x.generation == generation else x for x in self.lives)
        return self._with(event, tuple(lives))

    def without(self, generation: int, event: AgentEvent) -> AgentRecord:
        """Return the record when no process of the generation is left."""
        return self._with(event, tuple(x for x in self.lives if x.generation != generation))

    def moved(self, generation: int, process: str) -> AgentRecord:
        """Return the record with a generation held by another process than it was to be."""
        return replace(self, lives=tuple(replace(x, process=process) if x.generation == generation else x for x in self.lives))

    def leaving(self, event: AgentEvent) -> AgentRecord:
        """Return the record after REVOKE or REMOVE; raises IllegalTransitionError."""
        state = step(self.state, event, agent=self._name, history=self.history)
        return replace(self._with(event, () if state is AgentState.ABSENT else self.lives), state=state)

    def _with(self, event: AgentEvent, lives: tuple[Life, ...]) -> AgentRecord:
        state = self.state if self.state is AgentState.REVOKED else state_of(lives)
        current = self
        if self.outdated and all(life.generation > self.outdated for life in lives):
            current = replace(self, outdated=0, held=None)
        return replace(current, state=state, lives=lives, history=(*self.history, event.value)[-_HISTORY:])

    @property
    def _name(self) -> str:
        return f"Agent {self.spec.agent_id}"

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
            "lives": [life.to_json() for life in self.lives],
            "idempotency": self.idempotency,
            "history": list(self.history),
            **({"outdated": self.outdated} if self.outdated else {}),
            **({"held": self.held.to_json()} if self.held else {}),
            **({"gang": self.gang} if self.gang else {}),
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
                lives=_lives(value),
                idempotency=value["idempotency"],
                history=tuple(value["history"]),
                outdated=value.get("outdated", 0),
                held=Holding.from_json(value["held"]) if "held" in value else None,
                gang=value.get("gang", ""),
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
            "spec_digest": spec.digest,
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
            "replicas": spec.max_replicas,
            "max_replicas": spec.max_replicas,
            "min_replicas": spec.min_replicas,
            "target_queue": spec.target_queue,
            "network_access": list(spec.network_access),
            "data_access_level": spec.data_access_level,
            "compliance": list(spec.compliance),
            "max_iterations": spec.max_iterations,
            "labels": dict(spec.labels),
            "node_labels": dict(spec.node_labels),
            "budget": spec.budget.to_json(),
            "gang": self.gang,
            "created_at": utc(self.created_us).isoformat(),
            "registered_by": self.registered_by,
            "decision_id": self.decision_id,
            "policy": {"revision": self.policy_revision, "digest": self.policy_digest},
        }


def _lives(value: dict[str, Any]) -> tuple[Life, ...]:
    if "lives" in value:
        return tuple(Life.from_json(x) for x in value["lives"])
    # Of before an agent could have several: its process was named after it.
    state, generation = AgentState(value["state"]), value["generation"]
    if state is AgentState.PASSIVE:
        return ()
    process = f"{PROCESS_PREFIX}{value['tenant']}:{value['spec']['agent_id']}:g{generation}"
    return (Life(generation, process, AgentState.LIVE if state is AgentState.REVOKED else state, value["address"]),)
