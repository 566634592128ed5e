"""The policy's other questions: what a running agent's tools may do and reach, and what agents may do to each other.

What an agent may call and reach is asked when it wakes; at each call its process holds to the grant, with no policy on the
way. A rule that gives no clean answer grants nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from cluster.admission.admission import ACTIVATION, ADMISSION, INVOCATION, AdmissionRequest, Entrypoint
from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError
from cluster.admission.standing import StandingEngine
from cluster.agents.record import AgentRecord
from cluster.identity.principal import Principal

log = logging.getLogger(__name__)

TOOL_CALL: Final = Entrypoint(
    "data.sovereign.tool_call.decision",
    frozenset({"tenant_active", "tool_known", "tool_granted", "tool_follows", "tool_within_data_access_level"}),
)
EGRESS: Final = Entrypoint(
    "data.sovereign.egress.decision",
    frozenset({"tenant_active", "scheme_allowed", "port_allowed", "destination_declared", "destination_allowed"}),
)
DELEGATION: Final = Entrypoint(
    "data.sovereign.delegation.decision",
    frozenset(
        {
            "tenant_active",
            "same_tenant",
            "parent_may_delegate",
            "not_itself",
            "scopes_within_parent",
            "tools_within_parent",
            "egress_within_parent",
            "data_access_within_parent",
            "lifetime_within_parent",
            "depth_within_plan",
        }
    ),
)
DATA_ACCESS: Final = Entrypoint(
    "data.sovereign.data_access.decision",
    frozenset(
        {"tenant_active", "data_access_level_allowed", "data_class_known", "operation_known", "operation_within_level"},
    ),
)
REGION: Final = Entrypoint("data.sovereign.region.decision", frozenset({"tenant_active", "region_allowed", "node_in_region"}))
COMPLIANCE: Final = Entrypoint(
    "data.sovereign.compliance.decision",
    frozenset(
        {
            "tenant_active",
            "compliance_supported",
            "compliance_providers",
            "compliance_egress",
            "compliance_regions",
            "compliance_data_access",
        }
    ),
)

# Every question, by the name of its rule file.
ENTRYPOINTS: Final[Mapping[str, Entrypoint]] = {
    "admission": ADMISSION,
    "activation": ACTIVATION,
    "invocation": INVOCATION,
    "tool_call": TOOL_CALL,
    "egress": EGRESS,
    "delegation": DELEGATION,
    "data_access": DATA_ACCESS,
    "region": REGION,
    "compliance": COMPLIANCE,
}
EGRESS_GRANT: Final = "data.sovereign.egress.grant"


def granted_hosts(engine: PolicyEngine, record: AgentRecord) -> tuple[str, ...]:
    """Return the hosts ("*.name" for any below) that tools of the agent may fetch from today; none without a clean answer."""
    asked = orjson.dumps({"principal": {"tenant": record.tenant}, "agent": {"network_access": record.spec.network_access}})
    if isinstance(engine, StandingEngine):
        asked = engine.complete(asked)
    try:
        hosts = engine.evaluate(EGRESS_GRANT, asked.decode()).get("hosts")
    except PolicyEngineError as e:
        log.warning("agent %s of %s reaches no host: %s", record.spec.agent_id, record.tenant, e.detail)
        return ()
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        log.warning("agent %s of %s reaches no host: the policy's grant is no list of names", record.spec.agent_id, record.tenant)
        return ()
    return tuple(hosts)


def delegation_request(who: Principal, parent: AgentRecord, child: AgentRecord, *, expires_us: int) -> AdmissionRequest:
    """Return the question whether the agent `parent`, for which `who` stands, may hand work to the agent `child`.

    Both are held to their records, whatever who asks says of them; `expires_us` is when what is granted ends, for both.
    """
    scopes = sorted(who.scopes)
    document = {
        "principal": {"tenant": who.tenant},
        "parent": _rights(parent, scopes, expires_us, who.depth - 1),
        "child": _rights(child, scopes, expires_us, who.depth),
    }
    return AdmissionRequest(DELEGATION, orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


def _rights(record: AgentRecord, scopes: Sequence[str], expires_us: int, depth: int) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "agent_id": record.spec.agent_id,
        "scopes": scopes,
        "tools": list(record.tools),
        "network_access": list(record.spec.network_access),
        "data_access_level": record.spec.data_access_level,
        "expires_us": expires_us,
        "depth": depth,
    }
