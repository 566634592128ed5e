"""What two looks at the live actors say, together with the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.admission.reconciliation import Findings, MayLive, Place, Reconciliation, SeenActor

OURS, THEIRS, FREE = "01000000", "02000000", "03000000"
AGENT = "agent:default:one"
MAY_LIVE = MayLive(
    namespace="sovereign",
    agents=frozenset(),
    platform_jobs=frozenset({OURS}),
    parts=(Place("sovereign", "governance"), Place("sovereign", "shipper:"), Place("serve", "SERVE_")),
    rays=(Place("supervisors", "job_"),),
    free_jobs=frozenset({FREE}),
)
WITH_AGENT = replace(MAY_LIVE, agents=frozenset({AGENT}))
NOTHING = Findings((), frozenset())


def actor(name: str = "", namespace: str = "sovereign", job_id: str = THEIRS, actor_id: str = "a") -> SeenActor:
    return SeenActor(actor_id, name, namespace, "Anything", job_id, 1)


STRAYS = {
    "unnamed": actor(),
    "named": actor("mine", "somewhere"),
    "unnamed, of our own job": actor(job_id=OURS),
    "an agent's name": actor(AGENT),
    "a part's name": actor("governance"),
    "a part's name elsewhere": actor("governance", "somewhere", job_id=OURS),
    "among Serve's": actor("SERVE_REPLICA::mine", "serve"),
    "in Serve's namespace": actor("mine", "serve", job_id=OURS),
    "an agent that no record stands behind": actor("agent:default:two", job_id=OURS),
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
def test_an_actor_without_a_reason_is_a_stray_at_the_second_look(stray: SeenActor) -> None:
    """Whatever it is called and wherever it is; a job can't hide its actor behind a name."""
    looks = Reconciliation()
    assert looks.look([stray], MAY_LIVE) == NOTHING
    assert looks.look([stray], MAY_LIVE).strays == (stray,)
    assert looks.look([stray], MAY_LIVE).strays == (stray,), "it must be ended again until it is gone"


@pytest.mark.parametrize(
    "known",
    [
        actor("governance", job_id=OURS),
        actor("shipper:n1", job_id=OURS),
        actor("SERVE_REPLICA::gateway", "serve", job_id=OURS),
        actor("job_run", "supervisors"),
        actor(job_id=FREE),
        actor("mine", "anywhere", job_id=FREE),
        actor(AGENT, job_id=OURS),
    ],
)
def test_what_may_live_is_let_be(known: SeenActor) -> None:
    """The platform's parts, Serve's, Ray's supervisors, agents in the ledger, and jobs that may have actors."""
    looks = Reconciliation()
    assert [looks.look([known], WITH_AGENT).strays for _ in range(3)] == [(), (), ()]


def test_an_agent_that_ends_is_no_stray_while_ray_is_late() -> None:
    """Its row goes before Ray has noticed its end; one that stays on without a row is a stray after all."""
    looks, ending = Reconciliation(), actor(AGENT, job_id=OURS)
    assert looks.look([ending], WITH_AGENT) == NOTHING
    assert looks.look([ending], MAY_LIVE) == NOTHING
    assert looks.look([ending], MAY_LIVE) == NOTHING
    assert looks.look([ending], MAY_LIVE).strays == (ending,)


def test_a_suspect_that_is_replaced_by_another_is_not_ended_for_it() -> None:
    """Two looks speak of one actor, not of one name."""
    looks = Reconciliation()
    looks.look([actor(actor_id="a")], MAY_LIVE)
    assert looks.look([actor(actor_id="b")], MAY_LIVE) == NOTHING


def test_an_agent_without_an_actor_has_vanished_at_the_second_look() -> None:
    """A row that is new has its actor in a moment; somebody else's actor under its name is not its own."""
    looks = Reconciliation()
    assert looks.look([actor(AGENT)], WITH_AGENT) == NOTHING
    assert looks.look([actor(AGENT, actor_id="b")], WITH_AGENT).vanished == {AGENT}
    assert looks.look([actor(AGENT, job_id=OURS)], WITH_AGENT) == NOTHING
    assert looks.look([], WITH_AGENT) == NOTHING
    assert looks.look([], MAY_LIVE) == NOTHING
