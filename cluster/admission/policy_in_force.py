"""The policy that decides now: rules, data and their engine, replaced together while others decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.admission.bundle import PolicyBundle
from cluster.admission.policy_engine import PolicyEngine


@dataclass(frozen=True, slots=True)
class Policy:
    """One bundle and the engine that evaluates it. A decision takes one and uses nothing else."""

    bundle: PolicyBundle
    engine: PolicyEngine
    # The bundle's number; 0 for one that was never accepted, as in a test.
    number: int = 0


class PolicySource(Protocol):
    """Where whoever decides finds the policy."""

    @property
    def now(self) -> Policy:
        """The policy that decides now."""
        ...


class PolicyInForce:
    """Holds the policy of this governor. Reading and replacing it are one step each; safe to use from many threads."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def now(self) -> Policy:
        """The policy that decides now; what began with an earlier one ends with that."""
        return self._policy

    def replace(self, policy: Policy) -> None:
        """Let `policy` make every decision that begins from now on."""
        self._policy = policy
