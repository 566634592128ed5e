"""The life of an agent as one table: what state follows from which event. Pure; the registrar makes it durable."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from cluster.errors import IllegalTransitionError


class AgentState(StrEnum):
    """Where an agent is in its life."""

    # No record; also after its removal.
    ABSENT = "absent"
    # Registered, without a process.
    PASSIVE = "passive"
    # A process was asked for and has not yet said that it serves.
    STARTING = "starting"
    LIVE = "live"
    # Takes no new calls, and ends when those that run have ended.
    DRAINING = "draining"
    # Never starts again; a process of it may still be ending, so its quota is still held.
    REVOKED = "revoked"


class AgentEvent(StrEnum):
    """What can happen to an agent."""

    REGISTER = "register"
    WAKE = "wake"
    # Another spec was admitted for it; no step of the table, because what runs goes on until it has ended.
    CHANGE = "change"
    STARTED = "started"
    START_FAILED = "start_failed"
    DRAIN = "drain"
    DRAINED = "drained"
    # Its process was found dead.
    LOST = "lost"
    # May not run any more, and its process is yet to be ended.
    REVOKE = "revoke"
    # Its record goes and its quota returns: only once there is no process.
    REMOVE = "remove"


TRANSITIONS: Final[dict[tuple[AgentState, AgentEvent], AgentState]] = {
    (AgentState.ABSENT, AgentEvent.REGISTER): AgentState.PASSIVE,
    (AgentState.PASSIVE, AgentEvent.WAKE): AgentState.STARTING,
    (AgentState.PASSIVE, AgentEvent.REMOVE): AgentState.ABSENT,
    (AgentState.STARTING, AgentEvent.STARTED): AgentState.LIVE,
    (AgentState.STARTING, AgentEvent.START_FAILED): AgentState.PASSIVE,
    (AgentState.STARTING, AgentEvent.LOST): AgentState.PASSIVE,
    (AgentState.STARTING, AgentEvent.REVOKE): AgentState.REVOKED,
    (AgentState.LIVE, AgentEvent.DRAIN): AgentState.DRAINING,
    (AgentState.LIVE, AgentEvent.LOST): AgentState.PASSIVE,
    (AgentState.LIVE, AgentEvent.REVOKE): AgentState.REVOKED,
    (AgentState.DRAINING, AgentEvent.DRAINED): AgentState.PASSIVE,
    (AgentState.DRAINING, AgentEvent.LOST): AgentState.PASSIVE,
    (AgentState.DRAINING, AgentEvent.REVOKE): AgentState.REVOKED,
    # To ask twice changes nothing.
    (AgentState.REVOKED, AgentEvent.REVOKE): AgentState.REVOKED,
    (AgentState.REVOKED, AgentEvent.REMOVE): AgentState.ABSENT,
}


def step(state: AgentState, event: AgentEvent, *, agent: str = "the agent", history: Sequence[str] = ()) -> AgentState:
    """Return the state that follows; raises IllegalTransitionError with the `history` of `agent`, oldest first."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        allowed = sorted(e.value for s, e in TRANSITIONS if s is state)
        raise IllegalTransitionError(
            f"{agent} is {state}, and {event} can't happen to it then; what went before: {' → '.join(history) or 'nothing'}.",
            hint=f"From {state} there is {', '.join(allowed)}.",
        )
    return after


def has_process(state: AgentState) -> bool:
    """Return whether a process of an agent in this state may exist."""
    return state in {AgentState.STARTING, AgentState.LIVE, AgentState.DRAINING, AgentState.REVOKED}
