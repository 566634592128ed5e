"""What an admission asks beside the policy: is everything declared that is bounded, and could any known node hold it. Pure.

Each answer is one more check of the same decision: it is in its fact, and a refusal names it beside the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.admission.admission import FailedCheck
from cluster.admission.catalog import Plan
from cluster.agents.budget import UNITS
from cluster.agents.placement import Node, infeasible
from cluster.agents.spec import AgentSpec


def failed_prerequisites(spec: AgentSpec, plan: Plan | None, nodes: Sequence[Node]) -> tuple[FailedCheck, ...]:
    """Return what keeps `spec` from being admitted under `plan` on a cluster of `nodes`; nothing of it when all is well.

    Without a plan nothing is bounded here, because the policy has refused already. While no node is known (`nodes` is
    empty) none is missed.
    """
    return tuple(_failed(spec, plan, nodes))


def _failed(spec: AgentSpec, plan: Plan | None, nodes: Sequence[Node]) -> Iterator[FailedCheck]:
    if plan is not None:
        # Kubernetes' rule: what a quota bounds must be said, by the registration or by the plan's defaults.
        declared = (("cpu", spec.resources.cpu_milli), ("memory", spec.resources.memory_bytes))
        if missing := [name for name, amount in declared if not amount]:
            yield FailedCheck(
                "resources_declared",
                f"The plan bounds {' and '.join(missing)}. Declare it in security_policy.resource_limits.",
            )
        if missing := [unit for unit in UNITS if plan.budget.of(unit) is not None and not spec.budget.of(unit)]:
            yield FailedCheck("budget_declared", f"The plan bounds {' and '.join(missing)}. Declare it in budget.")
    if nodes and (why := infeasible(spec.resources, dict(spec.node_labels), nodes)):
        yield FailedCheck("placement_feasible", why)
