"""The lifecycle is a table; what is not in it can't happen."""

from __future__ import annotations

import pickle

import pytest

from cluster.agents.lifecycle import TRANSITIONS, AgentEvent, AgentState, has_process, step
from cluster.errors import IllegalTransitionError


def test_a_whole_life_follows_the_table() -> None:
    """Register, wake, serve, drain, wake again, be lost, and be removed."""
    state = AgentState.ABSENT
    for event, then in [
        (AgentEvent.REGISTER, AgentState.PASSIVE),
        (AgentEvent.WAKE, AgentState.STARTING),
        (AgentEvent.STARTED, AgentState.LIVE),
        (AgentEvent.DRAIN, AgentState.DRAINING),
        (AgentEvent.DRAINED, AgentState.PASSIVE),
        (AgentEvent.WAKE, AgentState.STARTING),
        (AgentEvent.LOST, AgentState.PASSIVE),
        (AgentEvent.REMOVE, AgentState.ABSENT),
    ]:
        state = step(state, event)
        assert state is then


@pytest.mark.parametrize("state", AgentState)
@pytest.mark.parametrize("event", AgentEvent)
def test_a_step_is_in_the_table_or_illegal(state: AgentState, event: AgentEvent) -> None:
    """Any other pair of state and event raises an error with the history, which survives pickling."""
    if (state, event) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalTransitionError) as refused:
        step(state, event, agent="Agent a", history=("register", "wake"))
    assert "register → wake" in pickle.loads(pickle.dumps(refused.value)).detail


def test_the_revoked_never_wake() -> None:
    """From revoked there is only the end."""
    reached = {after for (before, _), after in TRANSITIONS.items() if before is AgentState.REVOKED}
    assert reached == {AgentState.REVOKED, AgentState.ABSENT}


def test_quota_returns_only_without_a_process() -> None:
    """An agent is removed from passive, or from revoked, which is left once its process has ended."""
    assert {before for (before, event) in TRANSITIONS if event is AgentEvent.REMOVE} == {AgentState.PASSIVE, AgentState.REVOKED}
    assert not has_process(AgentState.PASSIVE)
    assert has_process(AgentState.LIVE)
