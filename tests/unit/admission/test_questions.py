"""What agents may reach, call and be, by the policies' other questions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.admission.admission import AdmissionRequest, Decision, admission_request, decide
from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.policy_engine import PolicyEngineError
from cluster.admission.questions import EGRESS, ENTRYPOINTS, TOOL_CALL, granted_hosts
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.agents.egress import EgressPolicy, EgressRefusedError
from cluster.agents.record import AgentRecord
from cluster.identity.ids import ProjectId, TenantId
from tests.governors import DEFAULT, POLICIES, begin, changed_policies, principal, request
from tests.sizes import soak


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return load_bundle(POLICIES)


@pytest.fixture(scope="module")
def engine(bundle: PolicyBundle) -> RegorusPolicyEngine:
    return RegorusPolicyEngine(bundle)


def asked(bundle: PolicyBundle, *capabilities: str, **more: Any) -> AdmissionRequest:
    plan = bundle.catalog.plan_of(DEFAULT)
    assert plan
    return admission_request(principal(), request("a", *capabilities, **more).to_spec(plan.defaults.to_spec_defaults()))


def names(decision: Decision) -> list[str]:
    return [f.name for f in decision.failed]


def record_of(bundle: PolicyBundle, network_access: list[str], tenant: TenantId = DEFAULT) -> AgentRecord:
    plan = bundle.catalog.plan_of(DEFAULT)
    assert plan
    spec = request("a", security_policy={"network_access": network_access}).to_spec(plan.defaults.to_spec_defaults())
    return AgentRecord(tenant, ProjectId("default"), spec, (), "d", "r", "p", "key:test", 0)


def test_an_agent_reaches_the_hosts_of_its_declared_places(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """As the data of today's bundle names them, and no others."""
    assert granted_hosts(engine, record_of(bundle, ["model_providers"])) == (
        "api.anthropic.com",
        "api.mistral.ai",
        "api.openai.com",
    )
    assert granted_hosts(engine, record_of(bundle, [])) == ()


def test_a_place_that_the_plan_lost_is_not_reached(tmp_path: Path, bundle: PolicyBundle) -> None:
    """The grant follows the plan in force when the agent wakes, not the one of its registration."""
    poorer = load_bundle(changed_policies(tmp_path, "plans.yaml", {"standard.egress": ["model_providers"]}))
    assert granted_hosts(RegorusPolicyEngine(poorer), record_of(bundle, ["external_apis"])) == ()


def test_a_tenant_that_is_not_active_reaches_nothing(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """A suspended or unknown tenant's tools stay inside."""
    assert granted_hosts(engine, record_of(bundle, ["external_apis"], TenantId("nobody"))) == ()


@pytest.mark.parametrize("answer", [PolicyEngineError("it broke"), {}, {"hosts": None}, {"hosts": "*"}, {"hosts": [1]}])
def test_an_unclean_grant_grants_nothing(bundle: PolicyBundle, answer: Any) -> None:
    """Whatever is not a list of names is no host at all (threat 28)."""

    class Answering:
        revision, digest = "r", "d"

        def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
            if isinstance(answer, Exception):
                raise answer
            given: dict[str, Any] = answer
            return given

    assert granted_hosts(Answering(), record_of(bundle, ["external_apis"])) == ()


def test_the_registrar_grants_hosts_by_the_policy(tmp_path: Path) -> None:
    """What the agent's process is told is what the rules said."""
    governor = begin(tmp_path)
    try:
        made = governor.register(principal(), request("a", security_policy={"network_access": ["external_apis"]}))
        assert "*.wikipedia.org" in governor.egress_hosts(made.record)
    finally:
        governor.close()


def test_the_hosts_check_and_the_rule_agree(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """On random destinations the process that fetches allows exactly what the rule allows."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    hosts = granted_hosts(engine, record_of(bundle, ["external_apis"]))
    policy = EgressPolicy(hosts=hosts)
    labels = ["wikipedia", "org", "en", "api", "crossref", "xwikipedia", "com", "worldbank", "evil"]
    allowed = 0
    for _ in range(soak(200, 5_000)):
        exact = rng.choice(hosts).replace("*.", rng.choice(["en.", "a.b.", "", ".", "evilx"]))
        host = exact if rng.random() < 0.5 else ".".join(rng.choices(labels, k=rng.randrange(1, 4)))
        scheme, port = rng.choice([("https", 443), ("http", 80), ("https", 8443), ("http", 443), ("ftp", 21)])
        document = {
            "principal": {"tenant": DEFAULT},
            "agent": {"network_access": ["external_apis"]},
            "destination": {"scheme": scheme, "host": host, "port": port},
        }
        rule = decide(engine, AdmissionRequest(EGRESS, orjson.dumps(document))).allow
        try:
            policy.check(f"{scheme}://{host}:{port}/")
            process = True
        except EgressRefusedError:
            process = False
        assert process == rule, f"seed {seed}: {document}"
        allowed += rule
    assert allowed > 5


@pytest.mark.parametrize("tool", ["shell", "Web_search", "web-search", "web_search ", "", None, ["web_search"], 1])
def test_another_spelling_of_a_granted_tool_is_denied(engine: RegorusPolicyEngine, tool: object) -> None:
    """Only the exact name of a granted tool may be called (threat 31)."""
    document = {
        "principal": {"tenant": DEFAULT},
        "agent": {"capabilities": ["market_analysis"], "data_access_level": "public", "allowed_tools": None},
        "tools": ["web_search"],
        "tool": "web_search",
    }
    assert decide(engine, AdmissionRequest(TOOL_CALL, orjson.dumps(document))).allow
    decision = decide(engine, AdmissionRequest(TOOL_CALL, orjson.dumps(document | {"tool": tool})))
    assert (decision.allow, decision.tools) == (False, ())


AGENT: dict[str, Any] = {
    "agent_id": "a",
    "agent_type": "planner",
    "capabilities": ["market_analysis"],
    "allowed_tools": ["web_search"],
    "model": "local:small",
    "cpu_milli": 100,
    "memory_bytes": 64 << 20,
    "network_access": ["external_apis"],
    "data_access_level": "public",
    "compliance": ["GDPR"],
    "max_iterations": 10,
    "replicas": 1,
    "region": "eu",
}
TENANT = {"tenant": "default"}
CHILD = {
    "tenant": "default",
    "agent_id": "b",
    "scopes": ["sovereign:agents:invoke"],
    "tools": ["web_search"],
    "network_access": ["external_apis"],
    "data_access_level": "public",
    "expires_us": 5,
    "depth": 1,
}
PARENT = CHILD | {"agent_id": "a", "depth": 0, "tools": ["web_search", "ask_agent"]}
# What each question needs and nothing else, allowed as it stands.
GOOD: dict[str, dict[str, Any]] = {
    "admission": {"principal": TENANT | {"scopes": ["sovereign:agents:register"]}, "agent": AGENT},
    "activation": {
        "principal": TENANT,
        "agent": {k: v for k, v in AGENT.items() if k != "agent_id"},
        "tools": ["web_search"],
        "state": "passive",
    },
    "invocation": {
        "principal": TENANT | {"scopes": ["sovereign:agents:invoke"]},
        "action": "invoke",
        "tenant": "default",
    },
    "tool_call": {
        "principal": TENANT,
        "agent": {"capabilities": ["market_analysis"], "data_access_level": "public"},
        "tools": ["web_search"],
        "tool": "web_search",
    },
    "egress": {
        "principal": TENANT,
        "agent": {"network_access": ["external_apis"]},
        "destination": {"scheme": "https", "host": "en.wikipedia.org", "port": 443},
    },
    "delegation": {"principal": TENANT, "parent": PARENT, "child": CHILD},
    "data_access": {
        "principal": TENANT,
        "agent": {"data_access_level": "public"},
        "data": {"class": "public"},
        "operation": "read",
    },
    "region": {"principal": TENANT, "agent": {"region": "eu"}, "node": {"region": "eu"}},
    "compliance": {
        "principal": TENANT,
        "agent": {k: AGENT[k] for k in ("compliance", "model", "network_access", "region", "data_access_level")},
    },
}
ODD: tuple[Any, ...] = (None, True, 7, "x", ["x"], [[]], {"x": 1})


def replaced(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every copy of the document in which one part, at any depth, is gone or of another type."""
    for key, value in document.items():
        yield key, {k: v for k, v in document.items() if k != key}
        # Null asks for every tool that follows.
        odd = [o for o in ODD if type(o) is not type(value) and not (key == "allowed_tools" and o is None)]
        yield from ((f"{key}={o!r}", document | {key: o}) for o in odd)
        if isinstance(value, dict):
            yield from ((f"{key}.{where}", document | {key: inner}) for where, inner in replaced(value))


@pytest.mark.parametrize("question", ENTRYPOINTS)
def test_a_part_that_is_missing_or_of_another_type_is_denied(engine: RegorusPolicyEngine, question: str) -> None:
    """Of an allowed input, one part gone or of another type makes the answer a no, with no tool (threats 26 and 27)."""
    entrypoint = ENTRYPOINTS[question]
    whole = decide(engine, AdmissionRequest(entrypoint, orjson.dumps(GOOD[question])))
    assert whole.allow, whole.failed
    for where, document in replaced(GOOD[question]):
        decision = decide(engine, AdmissionRequest(entrypoint, orjson.dumps(document)))
        assert (decision.allow, decision.tools) == (False, ()), where


def test_a_region_that_the_plan_has_not_is_refused(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """The label that placement holds an agent to is a region of its plan."""
    assert decide(engine, asked(bundle, node_labels={"region": "eu"})).allow
    assert names(decide(engine, asked(bundle, node_labels={"region": "mars"}))) == ["region_allowed"]


def test_a_set_of_rules_bounds_region_provider_places_and_data(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """An agent under the GDPR is refused what the set does not allow, with the clause, and every check at once."""
    policy = {"network_access": ["model_providers"]}
    question = asked(
        bundle,
        model="openai:gpt-5",
        node_labels={"region": "us"},
        compliance_requirements=["GDPR", "SOC2"],
        security_policy=policy,
    )
    decision = decide(engine, question)
    assert sorted(names(decision)) == ["compliance_egress", "compliance_providers", "compliance_regions"]
    said = {f.name: f.message for f in decision.failed}
    assert "GDPR (Article 28, processors)" in said["compliance_providers"]
    assert "SOC2" not in said["compliance_regions"]
    assert decide(engine, asked(bundle, compliance_requirements=["GDPR", "SOC2"])).allow
