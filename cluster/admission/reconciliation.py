"""Which live actors no record stands behind, and behind which records no actor stands: the decision, without Ray.

Ray learns of an actor's end some time after the ledger does. So nothing is said of an actor or a record that was not seen
so in two looks, one after the other, and an actor whose record has just gone is let be for one more.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SeenActor:
    """A live actor, or one that is to live, as Ray's control store has it. Its names are its creator's choice."""

    actor_id: str
    name: str
    namespace: str
    class_name: str
    # The Ray job whose driver created it, or created the actor that created it, and so on up.
    job_id: str
    # 0 while it has no process.
    pid: int


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace, and what the names of the actors begin with that belong there."""

    namespace: str
    prefix: str

    def holds(self, actor: SeenActor) -> bool:
        """Return whether the actor is here."""
        return actor.namespace == self.namespace and actor.name.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class MayLive:
    """Who may live."""

    # Namespace and names of the agents that the ledger knows.
    namespace: str
    agents: Set[str]
    # Jobs that the platform's own actors and its services come from; where those are.
    platform_jobs: Set[str]
    parts: tuple[Place, ...]
    # Where Ray's own actors are that come from no job of the platform.
    rays: tuple[Place, ...]
    # Jobs of tenants whose plan has `raw_actors`.
    free_jobs: Set[str]

    def covers(self, actor: SeenActor) -> bool:
        """Return whether there is a reason for this actor to be."""
        if actor.job_id in self.free_jobs or any(p.holds(actor) for p in self.rays):
            return True
        if actor.job_id not in self.platform_jobs:
            return False
        return self.is_agent(actor, self.agents) or any(p.holds(actor) for p in self.parts)

    def is_agent(self, actor: SeenActor, names: Set[str]) -> bool:
        """Return whether it is the platform's actor of one of these agents."""
        return actor.job_id in self.platform_jobs and actor.namespace == self.namespace and actor.name in names


@dataclass(frozen=True, slots=True)
class Findings:
    """What two looks agree on: actors without a reason to be, and agents in the ledger without an actor."""

    strays: tuple[SeenActor, ...]
    vanished: frozenset[str]


class Reconciliation:
    """Compares looks; keeps what the last one found odd, and which agents it found in the ledger."""

    def __init__(self) -> None:
        self._odd: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._agents: Set[str] = frozenset()

    def look(self, actors: Iterable[SeenActor], may_live: MayLive) -> Findings:
        """Return what this look and the one before it found alike."""
        seen = list(actors)
        odd = [a for a in seen if not may_live.covers(a) and not may_live.is_agent(a, self._agents)]
        missing = may_live.agents - {a.name for a in seen if may_live.is_agent(a, may_live.agents)}
        findings = Findings(tuple(a for a in odd if a.actor_id in self._odd), self._missing & missing)
        self._odd = frozenset(a.actor_id for a in odd)
        self._missing, self._agents = frozenset(missing), may_live.agents
        return findings
