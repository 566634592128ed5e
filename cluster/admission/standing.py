"""How the tenant that a decision is about stands, for the policy to see: the one seam that every question passes.

The policy data declares some tenants; of those that were made at run time the question says plan and state, as `standing`
beside its principal. It is part of the input, and so of its digest: the decision can be asked again years later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from cluster.admission.policy_engine import PolicyEngine
from cluster.admission.policy_in_force import Policy, PolicySource
from cluster.admission.tenants import Tenants


class StandingEngine:
    """A policy engine with `complete`, which `decide` puts each question through before it is digested and evaluated."""

    def __init__(self, engine: PolicyEngine, tenants: Tenants) -> None:
        self._engine = engine
        self._tenants = tenants

    @property
    def revision(self) -> str:
        """The revision of the bundle that it evaluates."""
        return self._engine.revision

    @property
    def digest(self) -> str:
        """The digest of the bundle that it evaluates."""
        return self._engine.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        """Return what the engine below says."""
        return self._engine.evaluate(entrypoint, input_json)

    def complete(self, input_json: bytes) -> bytes:
        """Return the question with the standing of its principal's tenant, or as it was when the data declares that."""
        document: dict[str, Any] = orjson.loads(input_json)
        # Never taken from anywhere else: no question of ours has it, and one that had would lose it.
        document.pop("standing", None)
        standing = self._tenants.standing(document["principal"]["tenant"])
        if standing is not None:
            document["standing"] = standing
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


class PolicyForTenants:
    """The policy in force, whose questions say how the tenant stands."""

    def __init__(self, policy: PolicySource, tenants: Tenants) -> None:
        self._policy = policy
        self._tenants = tenants

    @property
    def now(self) -> Policy:
        """The policy that decides now, with an engine that completes each question."""
        policy = self._policy.now
        return replace(policy, engine=StandingEngine(policy.engine, self._tenants))
