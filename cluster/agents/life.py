"""One life of an agent: a generation, the process that holds it, and where in the lifecycle it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from cluster.agents.lifecycle import AgentState
from cluster.identity.ids import TenantId, uuid7

# What the names of agents' processes begin with.
PROCESS_PREFIX: Final = "agent:"
# What an agent is when its generations differ: whichever comes first here.
_RANK: Final = (AgentState.LIVE, AgentState.STARTING, AgentState.DRAINING)


@dataclass(frozen=True, slots=True)
class Life:
    """One generation of which a process may exist."""

    generation: int
    # The process's name, which it keeps when it is bound to another agent.
    process: str
    # starting, live or draining.
    state: AgentState
    # Where it answers; empty unless it is live.
    address: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads."""
        return {"generation": self.generation, "process": self.process, "state": self.state.value, "address": self.address}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the life that `to_json` wrote; raises KeyError, TypeError or ValueError when it is not one."""
        return cls(value["generation"], value["process"], AgentState(value["state"]), value["address"])


def mint_process(tenant: TenantId) -> str:
    """Return a name for a new process of the tenant. No name is used twice, so a killed one never leads to a later process."""
    return f"{PROCESS_PREFIX}{tenant}:{uuid7()}"


def state_of(lives: Iterable[Life]) -> AgentState:
    """Return what an agent with these generations is, unless it is revoked."""
    states = {life.state for life in lives}
    return next((state for state in _RANK if state in states), AgentState.PASSIVE)
